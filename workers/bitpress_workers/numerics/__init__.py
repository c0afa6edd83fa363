"""Pure tensor arithmetic: grids, Hessians and the column loop. Nothing here knows a method or a model."""
