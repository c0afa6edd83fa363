// Keeps pages current; without it they can be read and every form works.
"use strict";

const POLL_MS = 4000;
const REFRESH_MS = 1000;
const LOG_LINES = 200;
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// Times in the reader's zone; the title keeps UTC.
function localize(root) {
  const times = $$("time[datetime]", root);
  if (root.matches?.("time[datetime]")) times.push(root);
  for (const time of times) time.textContent = localTime(new Date(time.dateTime), time.closest(".log"));
}

function localTime(moment, isShort) {
  const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
  if (isShort) return moment.toLocaleTimeString(undefined, clock);
  const isToday = moment.toDateString() === new Date().toDateString();
  const day = { day: "numeric", month: "short", ...(moment.getFullYear() !== new Date().getFullYear() && { year: "numeric" }) };
  return isToday ? moment.toLocaleTimeString(undefined, clock) : moment.toLocaleString(undefined, { ...day, ...clock });
}

// One job: every event asks for the live part anew, at most once in REFRESH_MS; log lines are added as they come.
function follow(page) {
  const source = new EventSource(page.dataset.events);
  let waiting = null;
  const refresh = () => {
    waiting ??= setTimeout(() => {
      waiting = null;
      htmx.trigger("#live", "refresh");
    }, REFRESH_MS);
  };
  for (const type of ["progress", "block"]) source.addEventListener(type, refresh);
  source.addEventListener("block", () => $("#linears") && htmx.trigger("#linears", "refresh"));
  source.addEventListener("log", (event) => addLine(JSON.parse(event.data)));
  source.addEventListener("state", (event) => {
    const { state } = JSON.parse(event.data);
    $("#announce").textContent = `The job is ${state}.`;
    if (["succeeded", "failed", "cancelled"].includes(state)) {
      source.close();
      location.reload();
    } else refresh();
  });
  source.onopen = () => setOffline(false);
  source.onerror = () => {
    setOffline(true);
    refresh(); // a session that has ended leads to the login from there
  };
}

function addLine({ at, message }) {
  const log = $("#log");
  const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  const line = document.createElement("div");
  const time = document.createElement("time");
  const text = document.createElement("span");
  time.dateTime = at;
  time.title = `${at.slice(0, 19).replace("T", " ")} UTC`;
  text.textContent = message;
  line.append(time, " ", text);
  log.append(line);
  localize(line);
  $("#no-log")?.remove();
  while (log.childElementCount > LOG_LINES) log.firstElementChild.remove();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function setOffline(isOffline) {
  $("#offline").hidden = !isOffline;
}

// "Compare" has something to do once two jobs are chosen.
function countChosen() {
  const chosen = $$("input[form=chosen]:checked").length;
  for (const button of $$("[data-needs-chosen]")) {
    button.disabled = chosen < 2;
    button.title = chosen < 2 ? "Choose two jobs or more" : "";
  }
}

const THEMES = { auto: "light", light: "dark", dark: "auto" };
function switchTheme(form) {
  const root = document.documentElement;
  const theme = THEMES[root.dataset.theme];
  root.dataset.theme = theme;
  $("meta[name=color-scheme]").content = theme === "auto" ? "light dark" : theme;
  $("button", form).title = `Colours: ${theme}`;
  $(".theme-name", form).textContent = theme[0].toUpperCase() + theme.slice(1);
  const wanted = new URLSearchParams({ theme });
  fetch(form.action, { method: "POST", body: wanted, redirect: "manual" });
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("[data-theme-switch]")) {
    event.preventDefault();
    switchTheme(form);
  } else if (form.dataset.confirm && !confirm(form.dataset.confirm)) event.preventDefault();
});
document.addEventListener("change", countChosen);
document.addEventListener("htmx:load", (event) => {
  localize(event.detail.elt);
  countChosen();
});
document.addEventListener("htmx:afterRequest", (event) => setOffline(event.detail.failed && !event.detail.xhr.status));
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target.id === "job-form") $("#outcome")?.focus();
});

localize(document.body);
countChosen();
for (const log of $$("#log")) log.scrollTop = log.scrollHeight;
for (const page of $$("[data-events]")) follow(page);
if ($("[data-poll]"))
  setInterval(() => {
    if (!document.hidden) htmx.trigger("[data-poll]", "refresh");
  }, POLL_MS);
