"use strict";
// Names are others' words: they get into the page as text (textContent), never as markup.

const KEEP_MS = 5 * 60 * 1000;
const lag = new Map(); // machine -> [[at_ms, lag_ms], ...]
const changes = new Map(); // number -> {at_ms, vm, text}

const byId = (id) => document.getElementById(id);

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (kind) made.className = kind;
  return made;
}

function row(cells) {
  const made = element("tr");
  for (const cell of cells) {
    const td = element("td");
    td.append(cell instanceof Node ? cell : String(cell ?? "-"));
    made.append(td);
  }
  return made;
}

function fill(id, rows, none) {
  byId(id).querySelector("tbody").replaceChildren(...(rows.length ? rows : [row([none])]));
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false }) + "." + String(ms % 1000).padStart(3, "0");

function chart(samples, now) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const top = Math.max(1, ...samples.map(([, ms]) => ms));
  svg.setAttribute("viewBox", "0 0 300 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `at most ${top} ms`);
  const line = document.createElementNS(ns, "polyline");
  const place = ([at, ms]) => `${(300 - ((now - at) / KEEP_MS) * 300).toFixed(1)},${(38 - (ms / top) * 36).toFixed(1)}`;
  line.setAttribute("points", samples.map(place).join(" "));
  svg.append(line);
  return svg;
}

function stateOf(vm) {
  if (vm.stopping) return element("span", "stopping", "warn");
  if (vm.role === "primary") return element("span", "protected", "good");
  if (vm.role === "solo") return element("span", "runs alone", "bad");
  return element("span", "unknown", "warn");
}

function backupOf(vm) {
  if (vm.backup) return vm.backup;
  if (vm.named && vm.named.backup) return `${vm.named.backup} (view ${vm.named.number} is named)`;
  return "-";
}

// A failover begins as a machine goes solo, and is over when a later view is acknowledged.
function failovers() {
  const done = [];
  const open = new Map();
  for (const change of [...changes.values()].sort((a, b) => a.number - b.number)) {
    if (!change.vm) continue;
    if (change.text.includes(": went solo in ")) {
      open.set(change.vm, { vm: change.vm, steps: [] });
      done.push(open.get(change.vm));
    }
    const current = open.get(change.vm);
    if (!current) continue;
    current.steps.push(change);
    if (change.text.endsWith(" acknowledged") && current.steps.length > 1) {
      current.over = true;
      open.delete(change.vm);
    }
  }
  return done.reverse().slice(0, 20);
}

function showFailovers() {
  const items = failovers().map((failover) => {
    const first = failover.steps[0].at_ms;
    const last = failover.steps[failover.steps.length - 1].at_ms;
    const state = failover.over ? `protected again after ${((last - first) / 1000).toFixed(1)} s` : "not protected again yet";
    const item = element("li", `${clock(first)} ${failover.vm}: ${state}`, failover.over ? "" : "warn");
    const steps = element("ol");
    for (const step of failover.steps) steps.append(element("li", `+${step.at_ms - first} ms  ${step.text}`));
    item.append(steps);
    return item;
  });
  byId("failovers").replaceChildren(...(items.length ? items : [element("p", "none was seen", "note")]));
}

function showChanges() {
  const newest = [...changes.values()].sort((a, b) => b.number - a.number);
  for (const old of newest.slice(300)) changes.delete(old.number);
  fill("changes", newest.slice(0, 100).map((change) => row([clock(change.at_ms), change.text])), "nothing was seen");
  showFailovers();
}

function take(list) {
  const before = changes.size;
  for (const change of list) changes.set(change.number, change);
  return changes.size !== before;
}

function show(now) {
  const names = new Set(now.vms.map((vm) => vm.name));
  for (const name of [...lag.keys()]) if (!names.has(name)) lag.delete(name);
  fill("machines", now.vms.map((vm) => {
    const samples = lag.get(vm.name) ?? [];
    lag.set(vm.name, samples);
    if (vm.lag_ms !== null) samples.push([now.at_ms, vm.lag_ms]);
    while (samples.length && samples[0][0] < now.at_ms - KEEP_MS) samples.shift();
    const ms = vm.lag_ms === null ? "-" : `${vm.lag_ms} ms`;
    return row([vm.name, stateOf(vm), vm.view, vm.primary, backupOf(vm), ms, chart(samples, now.at_ms)]);
  }), "no machine is known");
  fill("hosts", now.hosts.map((host) => {
    const state = element("span", host.state, { live: "good", dead: "bad" }[host.state] ?? "warn");
    return row([host.name, state, host.address, host.missed_pings, host.spare ? "yes" : "no"]);
  }), "no host is known");
  if (take(now.changes)) showChanges();
}

async function start() {
  const history = await (await fetch("/v1/history")).json();
  // The service may have been started anew: its numbers have, then.
  changes.clear();
  lag.clear();
  for (const [name, samples] of Object.entries(history.lag)) lag.set(name, samples);
  take(history.changes);
  showChanges();
}

const state = byId("state");
const source = new EventSource("/v1/watch");
let ready = Promise.resolve();
source.onopen = () => {
  ready = start();
  state.textContent = "live";
  state.className = "good";
};
source.onmessage = async (event) => {
  try {
    await ready;
    show(JSON.parse(event.data));
  } catch (error) {
    state.textContent = `what came cannot be shown: ${error.message}`;
    state.className = "bad";
  }
};
source.onerror = () => {
  state.textContent = "the viewservice does not answer; what is shown is old";
  state.className = "bad";
};
