// The review page. A decision shows the next image at once and goes to the server in the background; what the page
// counts as done is only what the server has confirmed.

import { Outbox } from "/outbox.js";
import { Viewer } from "/viewer.js";

const AHEAD = 8; // images fetched before they are needed
const KEPT = 60; // images held, those behind and ahead
const GAP = 60_000; // a longer pause than this, in milliseconds, is a break and no pace
const WORDS = { accept: "accepted", reject: "rejected", unsure: "left unsure" };
const SIGNS = { accept: "✓", reject: "✕", unsure: "?" };
const $ = (id) => document.getElementById(id);
const version = document.querySelector("meta[name=page-version]").content;

const state = {
  study: null, reader: "", role: "read", items: [], sets: [], byToken: new Map(),
  position: 0, view: "one", grid: [], focus: 0, history: [], gaps: [], lastAt: 0, shownSet: -1, last: null,
};
const pictures = new Map(); // token -> promise of a decoded image
const viewer = new Viewer($("one"), $("zoom"), $("brightness"));
const outbox = new Outbox(prepare, settled, showSaved);
const clock = { since: 0, before: 0 };

// ---- talking to the server

async function get(path, parameters = {}) {
  const response = await fetch(`/api/${path}?${new URLSearchParams(parameters)}`);
  if (response.ok) return response.json();
  const text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error ?? text;
  } catch {
    // not JSON: the text says it
  }
  throw Object.assign(new Error(message), { status: response.status });
}

function own(path, token) {
  return `/api/${path}/${token}?${new URLSearchParams({ reader: state.reader, role: state.role })}`;
}

async function useToken() {
  const token = location.hash.slice(1);
  if (!token) return;
  history.replaceState(null, "", "/"); // out of sight and of the browser's history
  await fetch("/api/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
}

function prepare(entry) {
  const { id, reader, role, kind, verdict, reason, note, shown_ms, token } = entry;
  const supersedes = state.byToken.get(token)?.held ?? "";
  return { id, reader, role, item: token, kind, verdict, reason, note, shown_ms, supersedes, page: version };
}

function settled(entry, answer) {
  const item = state.byToken.get(entry.token);
  if (!item) return;
  if (answer.status === 200 || answer.status === 409) {
    item.held = answer.content.current?.id ?? "";
    if (!outbox.entries.some((each) => each.token === entry.token)) item.decision = answer.content.current;
  } else {
    item.decision = null;
  }
  const number = state.items.indexOf(item) + 1;
  if (answer.status === 409) {
    const kept = item.decision ? `it stays ${told(item.decision)}` : "it is open again";
    notice(`Image ${number} was decided on in another window in the meantime: ${kept}.`);
  } else if (answer.status !== 200) {
    notice(`Image ${number} was not kept: ${answer.content.error ?? "it was refused"}.`);
  } else if (entry.kind === "decide" && state.last === entry.token) {
    tellFinding(item, number);
  }
  later(refresh);
}

function send(item, values) {
  const shown_ms = Math.round(clock.before + (clock.since ? performance.now() - clock.since : 0));
  const { reader, role } = state;
  const fixed = { id: uuid(), owner: `${role}:${reader}`, reader, role, at: Date.now(), token: item.token, shown_ms };
  outbox.add({ verdict: "", reason: "", note: "", ...fixed, ...values });
}

function uuid() {
  const hex = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

// ---- pictures

function picture(item) {
  if (!pictures.has(item.token)) {
    const image = new Image();
    image.src = own("images", item.token);
    image.draggable = false;
    const loaded = image.decode().then(() => image);
    loaded.catch(() => pictures.delete(item.token)); // so that the next attempt asks anew
    pictures.set(item.token, loaded);
    if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(item.token);
}

function preload() {
  const number = state.view === "one" ? AHEAD : 2 * gridSize();
  openItems(state.position).slice(0, number).forEach((item) => picture(item).catch(() => {}));
}

// Items without a decision, from a position on and then from the start.
function openItems(from) {
  return [...state.items.slice(from), ...state.items.slice(0, from)].filter((item) => !item.decision);
}

// ---- showing

async function show(position) {
  state.position = position;
  const item = state.items[position];
  closeWhy();
  $("done").hidden = true;
  $("one").hidden = false;
  restartClock();
  try {
    const image = await picture(item);
    if (state.items[state.position] !== item) return; // the reader went on
    image.alt = `Image ${position + 1} of ${state.items.length}`;
    viewer.show(image);
  } catch {
    if (state.items[state.position] !== item) return;
    $("one").replaceChildren(message("This image could not be loaded.", "Try again", () => show(position)));
  }
  later(() => {
    preload();
    refresh();
  });
}

function showNext() {
  const [next] = openItems(state.position);
  if (next) show(state.items.indexOf(next));
  else showDone();
}

function showDone() {
  $("one").hidden = $("grid").hidden = true;
  const text = state.items.length
    ? `All ${state.items.length} images are decided on. Thank you. You may close this window; the study can go on.`
    : "There is nothing to decide on here: readers do not disagree on any image that all of them have judged.";
  $("done").replaceChildren(message(text));
  $("done").hidden = false;
  later(refresh);
}

function gridSize() {
  return Number($("grid-size").value);
}

async function showGrid() {
  state.grid = openItems(state.position).slice(0, gridSize());
  if (!state.grid.length) return showDone();
  state.focus = 0;
  $("done").hidden = $("one").hidden = true;
  $("grid").hidden = false;
  $("grid").dataset.size = gridSize();
  const tiles = state.grid.map((item, index) => {
    const tile = document.createElement("button");
    tile.type = "button";
    tile.className = "tile";
    tile.addEventListener("focus", () => focusTile(index, false));
    const put = (image) => tile.prepend(Object.assign(image, { alt: "" })); // the tile's own label names it
    picture(item).then(put, () => tile.append("not loaded"));
    return tile;
  });
  $("grid").replaceChildren(...tiles);
  restartClock();
  focusTile(0);
  later(() => {
    preload();
    refresh();
  });
}

function focusTile(index, move = true) {
  state.focus = Math.max(0, Math.min(state.grid.length - 1, index));
  [...$("grid").children].forEach((tile, each) => {
    tile.tabIndex = each === state.focus ? 0 : -1;
    tile.setAttribute("aria-current", each === state.focus);
  });
  if (move) $("grid").children[state.focus].focus();
  drawTiles();
}

function drawTiles() {
  state.grid.forEach((item, index) => {
    const tile = $("grid").children[index];
    const number = state.items.indexOf(item) + 1;
    tile.setAttribute("aria-label", `Image ${number}, ${item.decision ? worded(item.decision) : "open"}`);
    tile.dataset.verdict = item.decision?.verdict ?? "";
    let mark = tile.querySelector(".tile-mark");
    if (!mark) {
      mark = Object.assign(document.createElement("span"), { className: "tile-mark" });
      tile.append(mark);
    }
    mark.textContent = item.decision ? sign(item.decision) : "";
  });
}

function current() {
  if (!$("done").hidden) return null;
  return state.view === "one" ? state.items[state.position] : state.grid[state.focus];
}

// ---- deciding

function decide(verdict, reason = "", note = "", item = current()) {
  if (!item) return;
  item.decision = { id: "", verdict, reason, note };
  state.history = [...state.history.filter((token) => token !== item.token), item.token];
  state.last = item.token;
  send(item, { kind: "decide", verdict, reason, note });
  countPace();
  say(`${worded(item.decision)}.`);
  if (state.view === "one") {
    showNext();
  } else {
    closeWhy();
    drawTiles();
    restartClock();
    const open = state.grid.findIndex((each, index) => index > state.focus && !each.decision);
    const first = open < 0 ? state.grid.findIndex((each) => !each.decision) : open;
    if (first >= 0) focusTile(first);
    else $("next-grid").focus();
    later(refresh);
  }
}

function acceptRest() {
  for (const item of state.grid.filter((each) => !each.decision)) decide("accept", "", "", item);
}

function undo() {
  const token = state.history.pop();
  const item = state.byToken.get(token);
  if (!item) return say("There is nothing to undo.");
  send(item, { kind: "undo" });
  item.decision = null;
  state.last = null;
  $("last").textContent = `Image ${state.items.indexOf(item) + 1}: undone.`;
  say("Undone.");
  if (state.view === "grid" && state.grid.includes(item)) focusTile(state.grid.indexOf(item));
  else if (state.view === "grid") {
    state.position = state.items.indexOf(item);
    showGrid();
  } else show(state.items.indexOf(item));
}

function openWhy() {
  if (!current()) return;
  $("verdicts").hidden = true;
  $("why").hidden = false;
  $("note-form").hidden = true;
  $("reasons").querySelector("button").focus();
}

function closeWhy() {
  if ($("why").hidden) return;
  const inside = $("why").contains(document.activeElement);
  $("why").hidden = true;
  $("verdicts").hidden = false;
  $("note").value = "";
  if (inside) $("actions").focus();
}

function rejectFor(index) {
  const reason = state.study.reasons[index];
  if (!reason || !current()) return;
  if (index < state.study.reasons.length - 1) return decide("reject", reason);
  openWhy();
  $("note-form").hidden = false;
  $("note").focus();
}

function look(by) {
  if (state.view === "grid") return focusTile(state.focus + by);
  const from = $("done").hidden ? state.position : state.items.length;
  const to = from + by;
  if (to >= 0 && to < state.items.length) show(to);
}

// ---- what stands around the image

function refresh() {
  const confirmed = state.items.filter((item) => item.held).length;
  const left = state.items.length - confirmed;
  $("count").textContent = `${confirmed} of ${state.items.length}`;
  $("progress").max = Math.max(1, state.items.length);
  $("progress").value = confirmed;
  $("pace").textContent = pace(left);
  state.sets.forEach((set, index) => {
    const mine = state.items.filter((item) => item.set === index);
    const decided = mine.filter((item) => item.decision);
    const accepted = decided.filter((item) => item.decision.verdict === "accept").length;
    const row = $("sets").children[index];
    const before = set.before ? `, ${set.before} in other rounds` : "";
    row.querySelector(".accepted").textContent = `${accepted} accepted${before}`;
    row.querySelector(".left").textContent = `${mine.length - decided.length} left`;
    row.querySelector("progress").value = accepted + set.before;
  });
  const item = current();
  $("mark").hidden = !(state.view === "one" && item?.decision);
  if (item?.decision) {
    $("mark").textContent = sign(item.decision);
    $("mark").dataset.verdict = item.decision.verdict;
  }
  $("undo").disabled = !state.history.length;
  $("back").disabled = state.view === "one" && state.position === 0;
  for (const id of ["accept", "unsure", "reject"]) $(id).disabled = !item;
  if (item) showReference(item);
}

function showReference(item) {
  $("description").textContent = item.description || "None is given.";
  if (item.votes) {
    $("vote-list").replaceChildren(...item.votes.map((vote) => entry("li", `${sign(vote)}${vote.note ? ` (${vote.note})` : ""}`)));
  }
  [...$("sets").children].forEach((row, index) => row.toggleAttribute("data-current", index === item.set));
  if (!$("guides-box").open || state.shownSet === item.set) return;
  state.shownSet = item.set;
  const guides = state.sets[item.set].guides.map((guide) => {
    const image = Object.assign(new Image(), { src: `/api/guides/${guide.number}`, alt: "", loading: "lazy" });
    const row = entry("li", "");
    row.append(image, entry("p", `${guide.number + 1}. ${guide.caption}`));
    return row;
  });
  $("guides").replaceChildren(...guides);
}

function drawSets() {
  const rows = state.sets.map((set) => {
    const row = entry("li", "");
    const wanted = set.least === set.most ? `${set.most}` : `${set.least}–${set.most}`;
    const meter = Object.assign(document.createElement("progress"), { max: Math.max(1, set.most), value: 0 });
    meter.setAttribute("aria-label", `Accepted of ${set.name}, target ${wanted}`);
    const line = entry("p", "");
    line.append(entry("span", "", "accepted"), entry("span", "", "left"));
    row.append(entry("strong", set.name), entry("span", `target ${wanted} of ${set.candidates}`, "target"), meter, line);
    return row;
  });
  $("sets").replaceChildren(...rows);
}

async function tellFinding(item, number) {
  let text = `Image ${number}: ${sign(item.decision)}.`;
  try {
    const finding = await get(`findings/${item.token}`, { reader: state.reader, role: state.role });
    const fault = finding.fault ? `${finding.fault}. You may want to look again (←)` : "nothing found";
    text += ` Automatic check: ${fault}; most like guide ${finding.guide + 1} (similarity ${finding.similarity.toFixed(2)}).`;
  } catch {
    // the decision is kept; only the check could not be fetched
  }
  if (state.last === item.token) $("last").textContent = text;
}

function countPace() {
  const now = performance.now();
  if (state.lastAt && now - state.lastAt < GAP) state.gaps = [...state.gaps, now - state.lastAt].slice(-30);
  state.lastAt = now;
}

function pace(left) {
  if (state.gaps.length < 3) return "";
  const gap = [...state.gaps].sort((a, b) => a - b)[Math.floor(state.gaps.length / 2)];
  const minutes = Math.ceil((left * gap) / 60_000);
  return `${Math.max(1, Math.round(60_000 / gap))} a minute, about ${minutes} min left`;
}

function showSaved(waiting, failures, locked) {
  $("saved").textContent = waiting ? `Saving ${waiting} …` : "All saved";
  const decisions = waiting === 1 ? "1 decision waits" : `${waiting} decisions wait`;
  if (locked) {
    notice(`The server was started anew: open the whole address that it printed, here. ${decisions} on this device until then.`, "lost");
  } else if (failures > 1) {
    notice(`No connection. ${decisions} on this device, to be sent when it is back; you can go on.`, "lost");
  } else if (!waiting && $("banner").dataset.kind === "lost") notice("");
}

function notice(text, kind = "") {
  $("banner").textContent = text;
  $("banner").dataset.kind = kind;
  $("banner").hidden = !text;
}

function say(text) {
  $("announce").textContent = text;
}

function sign(decision) {
  return `${SIGNS[decision.verdict]} ${worded(decision)}`;
}

function worded(decision) {
  const word = WORDS[decision.verdict];
  return `${word[0].toUpperCase()}${word.slice(1)}${decision.reason ? `: ${decision.reason}` : ""}`;
}

function told(decision) {
  return `${WORDS[decision.verdict]}${decision.reason ? ` (${decision.reason})` : ""}`;
}

function entry(tag, text, className = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className });
}

function message(text, label = "", action = null) {
  const box = entry("div", "", "message");
  box.append(entry("p", text));
  if (action) {
    const button = Object.assign(entry("button", label), { type: "button" });
    button.addEventListener("click", action);
    box.append(button);
  }
  return box;
}

// After the frame in which the image appears: nothing may stand between a decision and the next image.
function later(work) {
  requestAnimationFrame(() => setTimeout(work));
}

function restartClock() {
  clock.before = 0;
  clock.since = document.hidden ? 0 : performance.now();
}

// ---- keys, buttons

const KEYS = {
  a: () => decide("accept"),
  u: () => decide("unsure"),
  r: openWhy,
  z: undo,
  A: () => state.view === "grid" && acceptRest(),
  n: () => state.view === "grid" && showGrid(),
  v: () => setView(state.view === "one" ? "grid" : "one"),
  g: () => toggle("guides-box"),
  d: () => toggle("description-box"),
  "+": () => viewer.zoomBy(1.25),
  "=": () => viewer.zoomBy(1.25),
  "-": () => viewer.zoomBy(0.8),
  0: () => viewer.reset(),
  "[": () => viewer.brighten(-10),
  "]": () => viewer.brighten(10),
  "?": () => $("help").showModal(),
  ArrowLeft: () => look(-1),
  ArrowRight: () => look(1),
  ArrowUp: () => state.view === "grid" && focusTile(state.focus - columns()),
  ArrowDown: () => state.view === "grid" && focusTile(state.focus + columns()),
  Escape: closeWhy,
};
const PAN = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function onKey(event) {
  if (document.querySelector("dialog[open]") || event.altKey) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() !== "z") return;
  const typing = event.target.matches("input, select");
  if (typing && event.key !== "Escape") return;
  if (event.shiftKey && PAN[event.key] && state.view === "one") {
    event.preventDefault();
    return viewer.panBy(...PAN[event.key]); // held down, it goes on
  }
  if (!$("shortcuts").checked && event.key.length === 1) return;
  const lower = event.shiftKey && event.key === "A" && state.view === "grid" ? "A" : event.key.toLowerCase();
  const action = /^[1-9]$/.test(event.key) ? () => rejectFor(Number(event.key) - 1) : KEYS[event.key.length > 1 ? event.key : lower];
  if (!action || event.repeat) return; // a key held down must not decide on the next image
  event.preventDefault();
  action();
}

function columns() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

function toggle(id) {
  $(id).open = !$(id).open;
  if ($(id).open) $(id).scrollIntoView({ block: "nearest" });
}

function setView(view) {
  const item = current();
  state.view = view;
  $("view-one").setAttribute("aria-pressed", view === "one");
  $("view-grid").setAttribute("aria-pressed", view === "grid");
  document.querySelectorAll(".of-grid, #grid").forEach((each) => (each.hidden = view === "one"));
  document.querySelectorAll(".of-one, .tools, #one").forEach((each) => (each.hidden = view === "grid"));
  localStorage.setItem("synthvision-view", view);
  if (view === "grid") return showGrid();
  if (!item) return showNext();
  return show(state.items.indexOf(item));
}

function listen() {
  const clicks = {
    accept: () => decide("accept"), unsure: () => decide("unsure"), reject: openWhy, undo,
    back: () => look(-1), forward: () => look(1), "why-cancel": closeWhy, "accept-rest": acceptRest, "next-grid": showGrid,
    "view-one": () => setView("one"), "view-grid": () => setView("grid"), "zoom-in": () => viewer.zoomBy(1.25),
    "zoom-out": () => viewer.zoomBy(0.8), reset: () => viewer.reset(), "help-open": () => $("help").showModal(),
    reader: welcome,
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  document.addEventListener("keydown", onKey);
  $("grid-size").addEventListener("change", showGrid);
  $("guides-box").addEventListener("toggle", refresh);
  $("note-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const note = $("note").value.trim();
    if (note) decide("reject", state.study.reasons.at(-1), note);
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && clock.since) clock.before += performance.now() - clock.since;
    clock.since = document.hidden ? 0 : performance.now(); // time spent elsewhere is not spent on the image
  });
  $("welcome-form").addEventListener("submit", begin);
  $("welcome").addEventListener("close", () => state.reader || welcome()); // Esc leads nowhere before there is a name
  addEventListener("hashchange", () => location.reload()); // a token was put behind the address
}

// ---- beginning

function welcome() {
  $("name").value = state.reader || localStorage.getItem("synthvision-reader") || "";
  $("welcome-error").textContent = "";
  $("welcome").showModal();
}

async function begin(event) {
  event.preventDefault();
  if (outbox.entries.length) return void ($("welcome-error").textContent = "Wait until all decisions are saved.");
  const role = new FormData($("welcome-form")).get("role") ?? "read";
  try {
    await open($("name").value.trim().replace(/\s+/g, " "), role);
    $("welcome").close();
  } catch (error) {
    $("welcome-error").textContent = error.message;
  }
}

async function open(reader, role) {
  const queue = await get("queue", { reader, role });
  pictures.clear();
  Object.assign(state, { reader, role, sets: queue.sets, last: null, shownSet: -1, position: 0, gaps: [], lastAt: 0 });
  state.items = queue.items.map((item) => ({ ...item, held: item.decision?.id ?? "" }));
  state.byToken = new Map(state.items.map((item) => [item.token, item]));
  const decided = state.items.filter((item) => item.decision).sort((a, b) => a.order - b.order);
  state.history = decided.map((item) => item.token);
  localStorage.setItem("synthvision-reader", reader);
  localStorage.setItem("synthvision-role", role);
  $("reader").textContent = reader;
  $("votes").hidden = role !== "adjudicate";
  $("last").textContent = "None yet.";
  drawSets();
  const recovered = outbox.recover(`${role}:${reader}`);
  if (outbox.failures === 0) await recovered; // what an earlier visit decided is not asked again
  setView(localStorage.getItem("synthvision-view") === "grid" ? "grid" : "one");
  if (state.view === "one") showNext();
}

function drawReasons() {
  const rows = state.study.reasons.map((reason, index) => {
    const row = entry("li", "");
    const button = Object.assign(entry("button", ""), { type: "button" });
    button.append(entry("kbd", `${index + 1}`), ` ${reason}`);
    button.addEventListener("click", () => rejectFor(index));
    row.append(button);
    return row;
  });
  $("reasons").replaceChildren(...rows);
}

async function start() {
  listen();
  await useToken();
  try {
    state.study = await get("study");
  } catch (error) {
    return notice(error.status === 401 ? "Open the whole address that the server printed: the part behind # is missing or no longer holds." : `The server does not answer (${error.message}). Reload the page.`);
  }
  document.title = `Review: ${state.study.title}`;
  $("title").textContent = state.study.title;
  $("unmarked").hidden = !state.study.unmarked;
  $("role").hidden = !state.study.adjudicates;
  $("names").replaceChildren(...state.study.readers.map((name) => Object.assign(document.createElement("option"), { value: name })));
  drawReasons();
  const [reader, role] = ["reader", "role"].map((name) => localStorage.getItem(`synthvision-${name}`));
  if (!reader) return welcome();
  try {
    await open(reader, state.study.adjudicates ? role : "read"); // it opens where it was
  } catch {
    welcome();
  }
}

start();
