"""The web page under /ui: every page is made here and can be read without scripts; scripts keep it current."""
