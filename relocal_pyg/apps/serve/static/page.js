"use strict";
// Whatever comes from files or the server is set as text, never as HTML.
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// What the list of references offers for "all videos of the index"; ids are longer.
const INDEX = "index";
let videos = [], indexed = 0, job = null, playUntil = null;

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds * 100)), s = Math.floor(whole / 100);
  const two = (n) => String(n).padStart(2, "0");
  const head = s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}`
    : `${Math.floor(s / 60)}`;
  return `${head}:${two(s % 60)}.${two(whole % 100)}`;
}

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error || `the server answered ${answer.status}`);
  return body;
}

function load(side, id) {
  const player = byId(`${side}-player`);
  byId(`${side}-note`).hidden = true;
  if (id) player.src = `api/videos/${id}`;
  else {
    player.removeAttribute("src");
    player.load();
  }
}

function show(side) {
  const id = byId(side).value;
  playUntil = null;
  load(side, id === INDEX ? "" : id);
  if (side === "query") byId("start").value = byId("end").value = "";
  else {
    byId("reference-name").textContent = "The moments that you click are played here.";
    byId("reference-name").hidden = id !== INDEX;
  }
  byId("find").disabled = !(byId("query").value && byId("reference").value);
}

function fill() {
  for (const side of ["query", "reference"]) {
    const select = byId(side), chosen = select.value;
    select.replaceChildren(new Option(videos.length ? "choose" : "none yet", ""));
    if (side === "reference" && indexed)
      select.add(new Option(`all ${indexed} videos of the index`, INDEX));
    for (const v of videos) {
      const length = v.duration ? ` (${clock(v.duration)})` : "";
      select.add(new Option(v.name + length, v.id));
    }
    select.value = [...select.options].some((o) => o.value === chosen) ? chosen : "";
  }
}

async function upload(side) {
  const input = byId(`${side}-file`), file = input.files[0];
  if (!file) return;
  say(`Uploading ${file.name} …`);
  try {
    const video = await ask("api/videos", {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream",
        "X-File-Name": encodeURIComponent(file.name) },
      body: file,
    });
    videos.push(video);
    fill();
    byId(side).value = video.id;
    show(side);
    say("");
  } catch (error) {
    say(`${file.name}: ${error.message}`, true);
  }
  input.value = "";
}

function seconds(id) {
  const text = byId(id).value;
  return text === "" ? null : Number(text);
}

async function find() {
  const place = byId("reference").value;
  const busy = (yes) => {
    byId("find").disabled = yes;
    byId("progress").hidden = byId("cancel").hidden = !yes;
  };
  byId("results").hidden = true;
  busy(true);
  byId("progress").value = 0;
  say("Waiting …");
  try {
    const { id } = await ask("api/searches", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        query: byId("query").value,
        ...(place === INDEX ? { index: true } : { reference: place }),
        query_start: seconds("start"), query_end: seconds("end"),
      }),
    });
    job = id;
    for (;;) {
      const now = await ask(`api/searches/${id}`);
      if (now.state === "done") { answer(now, place); break; }
      if (now.state === "failed") throw new Error(now.error);
      if (now.state === "cancelled") { say("Stopped."); break; }
      byId("progress").value = now.share;
      if (now.doing) say(`Reading ${now.doing}: ${Math.round(100 * now.share)} %`);
      await new Promise((done) => setTimeout(done, 250));
    }
  } catch (error) {
    say(error.message, true);
  }
  job = null;
  busy(false);
}

function play(moment, number, place) {
  const player = byId("reference-player"), id = place === INDEX ? moment.video : place;
  // Another video may have been chosen since the search.
  if (player.getAttribute("src") !== `api/videos/${id}`) load("reference", id);
  if (place === INDEX) {
    byId("reference-name").textContent = moment.name;
    byId("reference-name").hidden = false;
  }
  const begin = () => {
    player.currentTime = moment.start;
    playUntil = moment.end;
    player.play().catch(() => {});
    requestAnimationFrame(watch);
  };
  playUntil = null;
  player.onloadedmetadata = player.readyState >= 1 ? null : begin;
  if (player.readyState >= 1) begin();
  player.scrollIntoView({ block: "nearest" });
  document.querySelectorAll("#moments button").forEach((button) =>
    button.setAttribute("aria-pressed", String(Number(button.dataset.number) === number)));
  document.querySelectorAll("#timeline rect").forEach((bar) =>
    bar.classList.toggle("playing", Number(bar.dataset.number) === number));
}

function bar(moment, total, height) {
  const part = document.createElementNS(SVG, "rect");
  part.setAttribute("x", 1000 * moment.start / total);
  part.setAttribute("width", Math.max(2, 1000 * (moment.end - moment.start) / total));
  part.setAttribute("height", height);
  return part;
}

// Where in its video a moment lies.
function strip(moment) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 1000 10");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("aria-hidden", "true");
  if (moment.duration) picture.append(bar(moment, moment.duration, 10));
  return picture;
}

function row(moment, number, place) {
  const button = document.createElement("button"), item = document.createElement("li");
  const hit = place === INDEX, gone = hit && moment.video === null;
  button.type = "button";
  button.dataset.number = number;
  button.setAttribute("aria-pressed", "false");
  button.classList.toggle("hit", hit);
  button.disabled = gone;
  const cell = (name, text) => {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    button.append(part);
  };
  cell("rank", `${number + 1}.`);
  if (hit) cell("name", gone ? `${moment.name} (its file is no longer there)` : moment.name);
  cell("time", `${clock(moment.start)} to ${clock(moment.end)}`);
  if (hit) button.append(strip(moment));
  const sure = moment.probability === null ? "" : `, probability ${moment.probability.toFixed(2)}`;
  cell("score", `score ${moment.score.toFixed(3)}${sure}`);
  button.addEventListener("click", () => play(moment, number, place));
  item.append(button);
  return item;
}

function draw(found, place) {
  const timeline = byId("timeline"), total = found.reference_seconds;
  found.moments.forEach((moment, number) => {
    const part = bar(moment, total, 120);
    part.dataset.number = number;
    if (number === 0) part.classList.add("first");
    part.addEventListener("click", () => play(moment, number, place));
    timeline.append(part);
  });
  const high = Math.max(...found.curve, 0.001), low = Math.min(...found.curve, 0);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", found.curve.map((value, i) =>
    `${(1000 * (i + 0.5) / found.curve.length).toFixed(1)},` +
    `${(4 + 112 * (high - value) / (high - low)).toFixed(1)}`).join(" "));
  timeline.append(line);
  byId("length").textContent = clock(total);
  byId("report").href = `api/searches/${found.id}/report`;
}

function answer(found, place) {
  byId("moments").replaceChildren(...found.moments.map((m, number) => row(m, number, place)));
  byId("timeline").replaceChildren();
  // A curve and a report are of one video.
  for (const id of ["timeline", "ends", "more"])
    byId(id).toggleAttribute("hidden", place === INDEX);
  if (place !== INDEX) draw(found, place);
  byId("settings").textContent = `${found.matcher}; ${found.settings.backbone}, ` +
    `${found.settings.frames_per_second} frames a second; the query is centred by ` +
    `${found.settings.query_centred_by}.` +
    (found.problems.length ? ` Damage: ${found.problems.join("; ")}` : "");
  byId("results").hidden = false;
  const many = found.moments.length;
  const told = found.presence ? ` (${found.presence})` : "";
  say(many ? `${many} moment${many > 1 ? "s" : ""} found${told}. Click one to play it.`
    : "Nothing found.");
}

for (const side of ["query", "reference"]) {
  byId(side).addEventListener("change", () => show(side));
  byId(`${side}-file`).addEventListener("change", () => upload(side));
  byId(`${side}-player`).addEventListener("error", () => {
    if (!byId(`${side}-player`).getAttribute("src")) return;
    byId(`${side}-note`).textContent =
      "This browser cannot play this kind of file; it can be searched all the same.";
    byId(`${side}-note`).hidden = false;
  });
}
// Every frame: "timeupdate" comes four times a second, which runs into what follows the moment.
function watch() {
  const player = byId("reference-player");
  if (playUntil === null) return;
  if (player.ended || player.currentTime >= playUntil - 0.02) {
    player.pause();
    playUntil = null;
  } else requestAnimationFrame(watch);
}
for (const edge of ["start", "end"]) {
  byId(`mark-${edge}`).addEventListener("click", () => {
    byId(edge).value = byId("query-player").currentTime.toFixed(2);
  });
}
byId("whole").addEventListener("click", () => { byId("start").value = byId("end").value = ""; });
byId("find").addEventListener("click", find);
byId("cancel").addEventListener("click", () => {
  if (job) ask(`api/searches/${job}`, { method: "DELETE" }).catch(() => {});
});
byId("find").disabled = true;
Promise.all([ask("api/videos"), ask("api/index")]).then(([list, index]) => {
  videos = list;
  indexed = index.videos;
  fill();
  if (indexed) {
    byId("reference").value = INDEX;
    show("reference");
  }
}).catch((error) => say(error.message, true));
