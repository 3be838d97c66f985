"use strict";
const at = id => document.getElementById(id);
const K = 10;
const state = { mode: "picks", picks: [], user: "", about: {}, asked: 0 };

function make(tag, text, options = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  return made;
}

async function call(path, body) {
  const headers = {}, key = sessionStorage.getItem("hllm-key");
  if (key) headers.Authorization = "Bearer " + key;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch { throw new Error("The service does not answer. Is it running?"); }
  const said = await answer.json().catch(() => ({ error: "status " + answer.status }));
  if (answer.status === 401) { at("ask-key").hidden = false; at("key").focus(); }
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function tell(problem) {
  at("problem").textContent = problem || "";
  at("problem").hidden = !problem;
}

/* ---- whom for ---- */
function choose(mode, focus) {
  state.mode = mode;
  for (const name of ["picks", "user"]) {
    const tab = at("tab-" + name);
    tab.setAttribute("aria-selected", String(name === mode));
    tab.tabIndex = name === mode ? 0 : -1;
    at(name).hidden = name !== mode;
    if (focus && name === mode) tab.focus();
  }
  forgetShown();
  refresh();
}

function pick(item) {
  if (!state.picks.some(p => String(p.item_id) === String(item.item_id))) state.picks.push(item);
  if (state.mode !== "picks") choose("picks"); else refresh();
}

function drawPicks() {
  at("picked").replaceChildren(...state.picks.map((item, place) => {
    const line = make("li");
    line.append(make("span", item.title), make("button", "✕", {
      "aria-label": "Remove " + item.title,
      onclick: () => {
        state.picks.splice(place, 1);
        refresh();
        (at("picked").querySelectorAll("button")[Math.min(place, state.picks.length - 1)] || at("query")).focus();
      },
    }));
    return line;
  }));
  at("clear-line").hidden = state.picks.length < 2;
  const begin = state.picks.length === 0, inside = at("known").contains(document.activeElement);
  if (!begin && inside && document.activeElement.matches(":focus-visible")) at("query").focus();
  at("known").hidden = !begin;
}

async function drawUser() {
  const user = state.user;
  at("user-history").hidden = true;
  if (!user) return;
  const said = await call("users/" + encodeURIComponent(user));
  if (user !== state.user) return;
  at("user-line").textContent = `${said.events} event${said.events === 1 ? "" : "s"}, newest first` + (said.live ? ", with what happened just now" : "");
  at("user-items").replaceChildren(...said.rows.slice(0, 12).map(item => {
    const line = make("li");
    line.append(make("span", item.title));
    return line;
  }));
  at("user-history").hidden = false;
}

/* ---- what is recommended, by each run ---- */
const whom = () => state.mode === "user" ? { users: [state.user] } : { history: [state.picks.map(item => item.item_id)] };
const active = () => state.about.compared ? lists : lists.slice(0, 1);

function forgetShown() { for (const list of lists) list.shown = []; }

function keepAddress() {
  const ids = state.picks.map(item => encodeURIComponent(item.item_id));
  const user = state.user ? "#user=" + encodeURIComponent(state.user) : "#user";
  history.replaceState(null, "", (state.mode === "user" ? user : ids.length ? "#items=" + ids.join(",") : "") || location.pathname);
}

async function refresh() {
  drawPicks();
  keepAddress();
  tell();
  const number = ++state.asked, asks = state.mode === "user" ? state.user : state.picks.length;
  for (const list of lists) {
    list.tell();
    list.empty.textContent = state.mode === "user" ? "Choose a user, and the recommendations appear here." : "Pick an item, and its recommendations appear here.";
    list.empty.hidden = Boolean(asks);
    if (!asks) list.draw([]);
  }
  if (!asks) { at("user-history").hidden = true; return; }
  if (state.mode === "user") drawUser().catch(() => { at("user-history").hidden = true; });
  await Promise.all(active().map(list => list.ask(number)));
  if (number === state.asked && state.about.compared) markShared();
}

class List {
  constructor(root, compared) {
    Object.assign(this, { root, compared, rows: [], shown: [] });
    for (const name of ["recs", "empty", "problem"]) this[name] = root.querySelector("." + name);
  }

  call(name) {
    this.name = name;
    this.root.querySelector("h2 span").textContent = name;
  }

  tell(problem) {
    this.problem.textContent = problem || "";
    this.problem.hidden = !problem;
  }

  async ask(number) {
    this.recs.classList.add("busy");
    try {
      const said = await call("recommend", { ...whom(), k: K, compared: this.compared });
      if (number !== state.asked) return;
      this.draw(said.rows);
      if (!said.rows.length) { this.empty.textContent = "Nothing is left to recommend."; this.empty.hidden = false; }
    } catch (problem) {
      if (number === state.asked) { this.draw([]); this.tell(problem.message.split("; for someone new")[0]); }
    } finally { if (number === state.asked) this.recs.classList.remove("busy"); }
  }

  draw(rows) {
    const before = this.shown, lines = [...this.recs.children], held = document.activeElement;
    const place = lines.findIndex(line => line.contains(held));
    const which = place < 0 ? -1 : [...lines[place].querySelectorAll(".acts button")].indexOf(held);
    this.rows = rows;
    this.recs.replaceChildren(...rows.map(row => this.line(row, before)));
    this.shown = rows.map(row => String(row.item_id));
    if (place < 0) return;
    // Whoever goes by keyboard stays where they were, on the item that is there now.
    const line = this.recs.children[Math.min(place, rows.length - 1)];
    (line ? line.querySelectorAll(".acts button")[Math.max(which, 0)] : at("query")).focus();
  }

  line(row, before) {
    const item = make("li"), line = make("div", null, { class: "line" }), acts = make("div", null, { class: "acts" });
    line.append(make("span", row.rank, { class: "rank" }), make("span", row.title, { class: "title", title: `score ${row.score.toFixed(3)}` }), moved(row, before), acts);
    item.append(line);
    const like = state.mode === "user" ? "Start here" : "Like";
    acts.append(opener(item, row, "Why?", why, this.compared), opener(item, row, "Similar", similar, this.compared), make("button", like, {
      "aria-label": `${like}: ${row.title}`, onclick: () => pick({ item_id: row.item_id, title: row.title }),
    }));
    return item;
  }
}

const lists = [...document.querySelectorAll(".list")].map((root, place) => new List(root, place === 1));

/* Of two runs: what both recommend, and at which place the other has it. */
function markShared() {
  const [first, second] = lists;
  for (const [list, other] of [[first, second], [second, first]]) {
    list.recs.querySelectorAll(".title").forEach((title, place) => {
      const there = other.shown.indexOf(list.shown[place]) + 1;
      title.append(make("span", there ? `no. ${there} in ${other.name}` : `not in ${other.name}`, { class: there ? "shared" : "shared alone" }));
    });
  }
  const both = first.shown.filter(item => second.shown.includes(item)).length;
  at("agree").textContent = first.shown.length && second.shown.length ? `${both} of ${first.shown.length} are in both lists` : "";
}

function moved(row, before) {
  if (!before.length) return make("span", "", { class: "move" });
  const was = before.indexOf(String(row.item_id)) + 1;
  if (!was) return make("span", "new", { class: "move new" });
  if (was === row.rank) return make("span", "", { class: "move" });
  const up = was > row.rank;
  return make("span", (up ? "↑" : "↓") + Math.abs(was - row.rank), { class: "move" + (up ? " up" : ""), title: "was at " + was });
}

function opener(item, row, text, fill, compared) {
  const button = make("button", text, { "aria-expanded": "false", "aria-label": `${text}: ${row.title}` });
  button.addEventListener("click", async () => {
    const open = button.getAttribute("aria-expanded") === "true";
    item.querySelectorAll(".more").forEach(one => one.remove());
    item.querySelectorAll("[aria-expanded]").forEach(one => one.setAttribute("aria-expanded", "false"));
    if (open) return;
    button.setAttribute("aria-expanded", "true");
    const more = make("div", "…", { class: "more" });
    item.append(more);
    try { await fill(more, row, compared); } catch (problem) { more.replaceChildren(make("span", problem.message, { class: "problem" })); }
  });
  return button;
}

async function why(more, row, compared) {
  const asked = state.mode === "user" ? { user: state.user } : { history: state.picks.map(item => item.item_id) };
  const said = await call("explain", { ...asked, item: row.item_id, k: 5, compared });
  const reasons = said.reasons.filter(one => one.share > 0), list = make("ul", null, { class: "why" });
  for (const one of reasons) {
    const line = make("li"), bar = make("span", null, { class: "bar" }), fill = make("i");
    fill.style.width = `${100 * one.share / reasons[0].share}%`;
    bar.append(fill);
    line.append(make("span", one.title), bar, make("span", one.share < 0.005 ? "<1%" : `${Math.round(100 * one.share)}%`, { class: "share" }));
    list.append(line);
  }
  const words = reasons.length ? "What raises its score:" : "No single item of the history raises its score.";
  more.replaceChildren(make("p", words, { class: "soft small" }), list);
}

async function similar(more, row, compared) {
  const said = await call("similar", { item: row.item_id, k: 5, compared });
  const list = make("ul", null, { class: "like" });
  for (const one of said.rows) { const line = make("li"); line.append(make("span", one.title)); list.append(line); }
  more.replaceChildren(make("p", "Most like it:", { class: "soft small" }), list);
}

/* ---- the search: arrows, Enter, Escape ---- */
let found = [], marked = -1, timer = 0, searched = 0;

function close() {
  at("found").hidden = true;
  at("query").setAttribute("aria-expanded", "false");
  at("query").removeAttribute("aria-activedescendant");
  found = []; marked = -1;
}

function mark(place) {
  marked = place;
  [...at("found").children].forEach((line, n) => {
    line.setAttribute("aria-selected", String(n === place));
    if (n === place) line.scrollIntoView({ block: "nearest" });
  });
  if (place >= 0) at("query").setAttribute("aria-activedescendant", "found-" + place);
}

function take(place) {
  const item = found[place];
  if (!item) return;
  at("query").value = "";
  close();
  pick(item);
}

async function search() {
  const text = at("query").value.trim(), number = ++searched;
  if (!text) return close();
  let held = null;
  try {
    const said = await call(`search?k=12&q=${encodeURIComponent(text)}`);
    if (number !== searched) return;
    held = marked > 0 ? found[marked] : null;  // gone to by arrows while the answer was on its way
    found = said.rows;
  } catch (problem) { close(); return tell(problem.message); }
  const lines = found.map((item, place) => make("li", item.title, {
    id: "found-" + place, role: "option", "aria-selected": "false",
    onmousedown: event => { event.preventDefault(); take(place); },
  }));
  at("found").replaceChildren(...(lines.length ? lines : [make("li", "No title has these words.", { class: "none" })]));
  at("found").hidden = false;
  at("query").setAttribute("aria-expanded", "true");
  mark(lines.length ? Math.max(0, found.findIndex(item => held && item.item_id === held.item_id)) : -1);
}

at("query").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 80); });
at("query").addEventListener("blur", () => { searched++; close(); });
at("query").addEventListener("keydown", event => {
  if (event.key === "Escape") { searched++; close(); }
  else if (event.key === "Enter") { event.preventDefault(); take(marked); }
  else if (found.length && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    event.preventDefault();
    mark((marked + (event.key === "ArrowDown" ? 1 : found.length - 1)) % found.length);
  }
});

at("tab-picks").addEventListener("click", () => choose("picks"));
at("tab-user").addEventListener("click", () => choose("user"));
document.querySelector(".tabs").addEventListener("keydown", event => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") choose(state.mode === "user" ? "picks" : "user", true);
});
at("clear").addEventListener("click", () => { state.picks = []; forgetShown(); refresh(); at("query").focus(); });
function showUser(user) { state.user = at("user-id").value = String(user).trim(); forgetShown(); refresh(); }
at("user-form").addEventListener("submit", event => { event.preventDefault(); showUser(at("user-id").value); });
at("ask-key").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("hllm-key", at("key").value.trim());
  at("ask-key").hidden = true;
  at("query").focus();
  begin();
});

function described(about) {
  return `Run ${about.run.name}, preset ${about.model}, trained on ${about.data}: ${about.items.toLocaleString("en")} items, ${about.users.toLocaleString("en")} users`;
}

async function begin() {
  try {
    const about = state.about = await call("about");
    at("about").replaceChildren(...[about, about.compared].filter(Boolean).map(one => make("span", described(one), { class: "block" })));
    document.body.classList.toggle("comparing", Boolean(about.compared));
    at("compared").hidden = !about.compared;
    if (about.compared) [about, about.compared].forEach((one, place) => lists[place].call(one.run.name));
    document.title = `Recommendations · ${about.run.name}`;
    at("some-users").replaceChildren(...about.some_users.map(user => make("button", user, { onclick: () => showUser(user) })));
    const known = await call("search?k=8");
    at("popular").replaceChildren(...known.rows.map(item => make("button", item.title, { onclick: () => pick(item) })));
    const [kind, value] = location.hash.slice(1).split("=");
    if (kind === "user") {
      state.user = at("user-id").value = decodeURIComponent(value || "");
      choose("user");
    } else if (kind === "items" && value) {
      const found = await Promise.allSettled(value.split(",").map(id => call("items/" + id)));
      state.picks = found.filter(one => one.value).map(({ value: { item_id, title } }) => ({ item_id, title }));
      await refresh();
      tell(found.filter(one => one.reason).map(one => one.reason.message)[0]);
    } else refresh();
  } catch (problem) { tell(problem.message); }
}
begin();
