// What running sessions ask, and the answers. Everything shown was written by somebody hostile: it becomes text nodes, never markup (the page's policy forbids the rest).
// INVARIANT: what is chosen never becomes another question by itself, and a yes takes three letters that were drawn for the question while it is in sight.
"use strict";

const LETTERS = "abcdefghjkmnpqrtuvwxyz"; // as in the terminal: none that look alike
const DEAF = 400; // ms in which nobody can have read a question yet
const SILENT = 25_000; // ms without a word from the server

const find = (id) => document.getElementById(id);
const dialogs = [find("confirm"), find("numbers"), find("keys")];

let rows = new Map(); // by name: {name, session, asked} for a question, {name, session, standing} for what was allowed until the session ends
let chosen = null; // one of them, also when it is over
let over = null; // what became of `chosen`: {text, test}
let busy = false; // an answer is on its way
let live = false;
let heard = 0; // when the server last said something
let ahead = 0; // seconds that its clock is ahead of ours
let confirming = null; // {row, scope, letters}
const items = new Map(); // by name: the list's element

function make(tag, facts = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function secondsLeft(asked) {
  return Math.max(0, Math.round(asked.expires - Date.now() / 1000 - ahead));
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

const waits = (row) => rows.has(row.name) && (!row.asked || secondsLeft(row.asked) > 0);
const alike = (row) => [...rows.values()].filter((one) => one.asked && one.session.id === row.session.id && one.asked.key === row.asked.key);

// ---- what comes ---------------------------------------------------------------------------------------------------------------------

function listen() {
  const source = new EventSource("events");
  source.onmessage = (event) => {
    const state = JSON.parse(event.data);
    ahead = state.now - Date.now() / 1000;
    connected(true);
    update(state);
  };
  source.addEventListener("beat", () => connected(true));
  source.onerror = () => {
    connected(false);
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

function connected(yes) {
  if (yes) heard = Date.now();
  if (live === yes) return;
  live = yes;
  if (!yes) {
    complain("There is no connection: stockade approvals --web has ended, or too many windows look on. Nothing can be answered here.");
    leave();
  }
  drawDetail();
}

function complain(text) {
  find("trouble").textContent = text;
  find("trouble").hidden = !text;
}

function update(state) {
  complain(state.trouble && `The sessions cannot be looked at: ${state.trouble}`);
  const before = rows;
  rows = new Map();
  for (const session of state.sessions) {
    for (const asked of session.asks) {
      const name = `${session.id}/${asked.number}/${asked.digest}`; // another question is another row, whatever its number
      rows.set(name, { name, session, asked });
    }
    for (const standing of session.standing) {
      const name = `${session.id}/=${standing.key}`;
      rows.set(name, { name, session, standing });
    }
  }
  const come = [...rows.values()].filter((row) => row.asked && !before.has(row.name));
  const waiting = [...rows.values()].filter((row) => row.asked).length;
  document.title = waiting ? `(${waiting}) stockade approvals` : "stockade approvals";
  const newest = come.length ? `. New: ${come.at(-1).asked.place}` : "";
  find("summary").textContent = `${waiting ? `${waiting} ${waiting === 1 ? "waits" : "wait"} for an answer` : "Nothing waits"}${newest}`;
  chosen = rows.get(chosen?.name) ?? chosen;
  if (chosen && !rows.has(chosen.name) && !over && !busy) gone();
  drawList();
  drawDetail();
}

function gone() {
  const late = chosen.asked && secondsLeft(chosen.asked) <= 0;
  const elsewhere = chosen.asked ? "Answered elsewhere, covered by an approval, or not waited for any more." : "It does not hold any more.";
  became(late ? "Its time is over: it was refused." : elsewhere);
}

function became(text, test = false) {
  over = { text, test };
  leave();
}

// ---- what is shown ------------------------------------------------------------------------------------------------------------------

function drawList() {
  const wanted = [];
  const shown = [...rows.values()];
  if (chosen && !rows.has(chosen.name)) shown.push(chosen); // stays in sight, and is done with
  const sessions = new Map();
  for (const row of shown) sessions.set(row.session.id, [...(sessions.get(row.session.id) ?? []), row]);
  for (const [id, own] of sessions) {
    wanted.push(item(`session ${id}`, () => make("li", { className: "session" }, `${own[0].session.workspace} · ${id.slice(0, 8)}`)));
    for (const row of own) wanted.push(item(row.name, () => make("li", {}, drawRow(row))));
  }
  for (const [name, node] of items) {
    if (wanted.includes(node)) continue;
    node.remove();
    items.delete(name);
  }
  wanted.forEach((node, at) => {
    if (find("rows").children[at] !== node) find("rows").insertBefore(node, find("rows").children[at] ?? null);
  });
  find("none").hidden = wanted.length > 0;
  mark();
}

function item(name, build) {
  if (!items.has(name)) items.set(name, build());
  return items.get(name);
}

function drawRow(row) {
  const [risk, place] = row.asked ? [row.asked.risk, row.asked.place] : ["held", row.standing.place];
  return make(
    "button",
    { type: "button", className: "row", title: place, onclick: () => choose(row), onfocus: () => choose(row) },
    make("span", { className: `risk ${risk}` }, row.asked ? risk : "allowed"),
    make("span", { className: "place" }, place),
    make("span", { className: "left" }),
  );
}

function mark() {
  for (const row of [...rows.values(), ...(chosen ? [chosen] : [])]) {
    const button = items.get(row.name)?.firstChild;
    if (!button) continue;
    button.setAttribute("aria-current", String(row.name === chosen?.name));
    button.classList.toggle("over", !waits(row));
    if (row.asked) button.lastChild.textContent = rows.has(row.name) ? clock(secondsLeft(row.asked)) : "";
  }
}

function choose(row) {
  if (chosen?.name === row.name) return;
  chosen = row;
  over = null;
  if (!rows.has(row.name)) gone();
  drawList();
  drawDetail();
}

function drawDetail() {
  const [all, actions] = [find("all"), find("actions")];
  find("became").textContent = over?.text ?? "";
  find("became").className = over?.test ? "test" : "";
  if (!chosen) {
    all.replaceChildren(make("p", { className: "empty" }, rows.size ? "Choose with ↑ and ↓." : "Whatever a session asks appears here as it comes."));
    actions.replaceChildren();
    return;
  }
  const does = chosen.asked ? choices(chosen) : [["Take back", "r", takeBack]];
  if (all.dataset.name !== chosen.name) {
    all.replaceChildren(...(chosen.asked ? question(chosen) : held(chosen)));
    all.dataset.name = chosen.name;
    all.scrollTop = 0;
    actions.replaceChildren(...does.map(action));
  }
  does.forEach(([text, , , never], at) => {
    const button = actions.children[at];
    button.firstChild.textContent = text;
    button.disabled = never || !open();
  });
  tick();
}

function question(row) {
  const asked = row.asked;
  const facts = [
    ["Risk", make("span", { className: `risk ${asked.risk}` }, asked.risk)],
    ["Left", make("span", { id: "left" })],
    ["Why you are asked", `The rule at ${asked.rule} lets nothing of the kind happen until somebody approves it.`],
    ["Once allows", "exactly this, and nothing else"],
    ["For the session", asked.people ? "no: it is approved once at a time, and only by people" : asked.also],
    ["Can be undone", asked.reversible ? "yes" : "no"],
    ["Session", `${row.session.id}, in ${row.session.workspace}`],
    ["Digest", asked.digest, "code"],
  ];
  if (asked.tainted) facts.splice(2, 0, ["Secrets", make("span", { className: "warning" }, "something secret was read in this session")]);
  if (asked.review) facts.splice(2, 0, ["The reviewer", asked.review]);
  return [make("pre", { className: "what" }, ...whole(asked)), list(facts)];
}

// What is asked, and of a file what would change: a line of its own for each, so that what is wrapped does not look like another.
function whole(asked) {
  const lines = asked.detail.map((line) => make("span", { className: `line ${{ "+": "come", "-": "gone" }[line[0]] ?? ""}` }, line));
  return [asked.what, ...lines];
}

function held(row) {
  const facts = [
    ["Holds", "until the session ends, or you take it back"],
    ["Session", `${row.session.id}, in ${row.session.workspace}`],
  ];
  return [make("pre", { className: "what" }, row.standing.place), list(facts)];
}

function list(facts) {
  return make("dl", {}, ...facts.flatMap(([name, value, kind = ""]) => [make("dt", {}, name), make("dd", { className: kind }, value)]));
}

function choices(row) {
  const many = alike(row).length;
  return [
    ["Allow once …", "a", () => confirm("once")],
    ["Allow for the session …", "s", () => confirm("session"), row.asked.people],
    ["Refuse", "d", () => refuse([row])],
    [many > 1 ? `Refuse all ${many} like it` : "Refuse all like it", "D", () => refuse(alike(row)), many < 2],
  ];
}

function action([text, key, does]) {
  const [name, shown] = key === "D" ? ["Shift+D", "⇧d"] : [key, key];
  return make("button", { type: "button", "aria-keyshortcuts": name, onclick: does }, text, " ", make("kbd", {}, shown));
}

const open = () => Boolean(chosen) && live && !busy && !over && waits(chosen);

function tick() {
  if (live && Date.now() - heard > SILENT) connected(false);
  mark();
  if (!chosen?.asked || !rows.has(chosen.name)) return;
  const left = secondsLeft(chosen.asked);
  if (find("left")) find("left").textContent = left ? `${clock(left)}, then it is refused` : "nothing";
  if (!left && !over && !busy) {
    gone();
    drawDetail();
  }
}

// ---- answers ------------------------------------------------------------------------------------------------------------------------

async function send(path, body) {
  const facts = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), redirect: "error" };
  try {
    const answer = await fetch(path, facts);
    if (answer.status === 403) return { failed: await answer.text() };
    const said = await answer.json();
    return answer.ok ? said : { failed: `${said.message}. ${said.hint}` };
  } catch {
    return { failed: "The connection broke: whether the answer has arrived is not known." };
  }
}

async function during(work) {
  if (!open()) return;
  busy = true;
  drawDetail();
  const row = chosen;
  const { text, test } = await work();
  busy = false;
  if (chosen.name === row.name) became(text, test);
  else find("summary").textContent = text;
  drawList();
  drawDetail();
}

const answer = (row, allow, scope) =>
  send("answer", { session: row.session.id, ask: row.asked.number, digest: row.asked.digest, allow, scope });

function refuse(some) {
  return during(async () => {
    const said = [];
    for (const row of some) said.push(await answer(row, false, "once"));
    const failed = said.find((one) => one.failed);
    const test = said.find((one) => one.told);
    if (failed) return { text: failed.failed };
    return { text: test ? test.told : some.length > 1 ? `Refused, all ${some.length}.` : "Refused.", test: Boolean(test) };
  });
}

function allow(scope) {
  return during(async () => {
    const said = await answer(chosen, true, scope);
    if (said.failed) return { text: said.failed };
    if (said.told) return { text: said.told, test: true };
    return { text: !said.allow ? "Refused." : scope === "session" ? "Allowed until the session ends." : "Allowed, once." };
  });
}

function takeBack() {
  return during(async () => {
    const said = await send("revoke", { session: chosen.session.id, key: chosen.standing.key });
    return { text: said.failed ?? "Taken back." };
  });
}

// ---- a yes, in two steps ------------------------------------------------------------------------------------------------------------

function confirm(scope) {
  if (!open() || (scope === "session" && chosen.asked.people)) return;
  const asked = chosen.asked;
  const mine = (confirming = { row: chosen, scope, letters: "" });
  find("confirm-title").textContent = scope === "session" ? "Allow this until the session ends?" : "Allow this once?";
  find("confirm-what").replaceChildren(...(scope === "session" ? [`${asked.place}\n\nnow: ${asked.what}`] : whole(asked)));
  const others = asked.people ? 0 : alike(chosen).filter((one) => one !== chosen && !one.asked.people).length;
  const waiting = others ? ` ${others} like it ${others === 1 ? "waits, and is" : "wait, and are"} allowed at once.` : "";
  find("confirm-also").textContent = scope === "session" ? `It would allow ${asked.also}.${waiting}` : "It would allow exactly this, and nothing else.";
  find("confirm-how").textContent = "";
  find("letters").value = "";
  find("letters").readOnly = true;
  find("confirm-yes").disabled = true;
  find("confirm").showModal();
  find("confirm-what").scrollTop = 0;
  find("confirm-what").focus();
  setTimeout(() => confirming === mine && draw(), DEAF);
}

function draw() {
  const text = find("confirm-what");
  if (!confirming || confirming.letters) return;
  if (text.scrollHeight - text.clientHeight - text.scrollTop > 4) {
    find("confirm-how").textContent = "It goes on below: the letters come when you have seen its end (PgDn, End).";
    confirming.soon = true;
    return;
  }
  confirming.letters = Array.from({ length: 3 }, pick).join("");
  find("confirm-how").replaceChildren("Type ", make("span", { className: "drawn" }, confirming.letters), " and Enter to allow it. Enter alone leaves it.");
  find("letters").readOnly = false;
  find("letters").focus();
}

function pick() {
  const [byte] = crypto.getRandomValues(new Uint8Array(1));
  return byte < 256 - (256 % LETTERS.length) ? LETTERS[byte % LETTERS.length] : pick();
}

function typed() {
  find("confirm-yes").disabled = !right();
}

const right = () => Boolean(confirming?.letters) && confirming.row.name === chosen.name && find("letters").value.trim().toLowerCase() === confirming.letters;

function yes() {
  if (!right()) {
    if (!find("letters").value) leave();
    find("letters").value = "";
    return;
  }
  const { scope } = confirming;
  leave();
  allow(scope);
}

function leave() {
  confirming = null;
  if (find("confirm").open) find("confirm").close();
}

// ---- numbers ------------------------------------------------------------------------------------------------------------------------

const percent = (rate) => `${Math.round(rate * 100)}%`;
const count = (one) => (one.whole ? `${one.least}` : one.least ? `at least ${one.least}` : "unknown");
const duration = (seconds) => (seconds === null ? "-" : seconds < 60 ? `${seconds.toFixed(1)} s` : `${(seconds / 60).toFixed(1)} min`);

async function numbers() {
  if (dialogs.some((one) => one.open)) return;
  const all = find("numbers-all");
  all.replaceChildren("Counting.");
  find("numbers").showModal();
  try {
    const answer = await fetch("stats");
    const said = await answer.json();
    all.replaceChildren(answer.ok ? table(said) : `${said.message}. ${said.hint}`);
  } catch {
    all.replaceChildren("There is no connection.");
  }
}

function table(found) {
  const { baseline, outcomes, times, canaries } = found;
  const plain = (name, value) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { className: "number" }, String(value)), make("td"));
  const head = (name) => make("tr", { className: "head" }, make("th", { colSpan: 3 }, name));
  const share = (name, one) => {
    if (one.rate === null) return plain(name, "-");
    const bar = make("progress", { max: 1, value: one.rate, "aria-label": name });
    const text = ` ${percent(one.rate)} (95% interval: ${percent(one.low)} to ${percent(one.high)})`;
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", { className: "number" }, `${one.part} of ${one.of}`), make("td", {}, bar, text));
  };
  return make(
    "table", {},
    head("Asked"),
    plain("sessions", found.sessions),
    plain("at work", duration(found.hours * 3600)),
    plain("a person was asked", found.prompts),
    plain("an hour", found.per_hour === null ? "-" : found.per_hour.toFixed(1)),
    plain("again, what was asked before", found.repeats),
    plain("timed out", outcomes.timed_out),
    plain("withdrawn", outcomes.withdrawn),
    plain("refused as too many", outcomes.too_many),
    plain("covered by an earlier approval", outcomes.earlier),
    plain("taken back", found.reversals),
    head("It would have been, asked about everything"),
    plain("commands", count(baseline.commands)),
    plain("connections", count(baseline.connections)),
    plain("files written", count(baseline.writes)),
    plain("fewer by", baseline.cut === null ? "unknown" : percent(baseline.cut)),
    head("Approved"),
    share("all", found.approved),
    ...["low", "medium", "high"].map((risk) => share(`${risk} risk`, found.by_risk[risk])),
    head("Answered"),
    plain("half within", duration(times.median)),
    plain("nine in ten within", duration(times.p90)),
    share("within 2 s", times.quick),
    head("Made up to be refused"),
    share("refused", canaries.vigilance),
    plain("approved", canaries.missed),
  );
}

// ---- keys ---------------------------------------------------------------------------------------------------------------------------

const KEYS = {
  a: () => confirm("once"),
  s: () => confirm("session"),
  d: () => chosen?.asked && refuse([chosen]),
  D: () => chosen?.asked && refuse(alike(chosen)),
  r: () => chosen?.standing && takeBack(),
  n: numbers,
  "?": () => find("keys").showModal(),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
};

function step(by) {
  const all = [...document.querySelectorAll(".row")];
  const at = all.findIndex((one) => one.getAttribute("aria-current") === "true");
  all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + by))]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || dialogs.some((one) => one.open)) return;
  const letter = event.shiftKey ? event.key.toUpperCase() : event.key.toLowerCase(); // Caps Lock is no Shift
  const does = KEYS[event.key.length === 1 ? letter : event.key];
  if (!does) return;
  event.preventDefault();
  if (!event.repeat || event.key.startsWith("Arrow")) does();
});

find("letters").addEventListener("input", typed);
find("letters").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  if (!event.repeat) yes();
});
find("confirm-what").addEventListener("scroll", () => confirming?.soon && draw());
find("confirm-yes").addEventListener("click", yes);
find("confirm-no").addEventListener("click", leave);
find("confirm").addEventListener("close", () => find("confirm").open || leave()); // told late: it may be open again, for another question
find("open-numbers").addEventListener("click", numbers);
find("open-keys").addEventListener("click", () => find("keys").showModal());
find("numbers-close").addEventListener("click", () => find("numbers").close());
find("keys-close").addEventListener("click", () => find("keys").close());
addEventListener("focus", tick);
setInterval(tick, 500);
drawDetail();
listen();
