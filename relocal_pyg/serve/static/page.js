"use strict";
// Whatever comes from files or the server is set as text, never as HTML.
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let videos = [], job = null, playUntil = null;

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

function show(side) {
  const id = byId(side).value, player = byId(`${side}-player`);
  playUntil = null;
  byId(`${side}-note`).hidden = true;
  if (id) player.src = `api/videos/${id}`;
  else player.removeAttribute("src");
  if (side === "query") byId("start").value = byId("end").value = "";
  byId("find").disabled = !(byId("query").value && byId("reference").value);
}

function fill() {
  for (const side of ["query", "reference"]) {
    const select = byId(side), chosen = select.value;
    select.replaceChildren(new Option(videos.length ? "choose" : "none yet", ""));
    for (const v of videos) {
      const length = v.duration ? ` (${clock(v.duration)})` : "";
      select.add(new Option(v.name + length, v.id));
    }
    select.value = videos.some((v) => v.id === chosen) ? chosen : "";
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
        query: byId("query").value, reference: byId("reference").value,
        query_start: seconds("start"), query_end: seconds("end"),
      }),
    });
    job = id;
    for (;;) {
      const now = await ask(`api/searches/${id}`);
      if (now.state === "done") { answer(now); break; }
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

function play(moment, number) {
  const player = byId("reference-player");
  player.currentTime = moment.start;
  playUntil = moment.end;
  player.play().catch(() => {});
  requestAnimationFrame(watch);
  document.querySelectorAll("#moments button").forEach((button, i) =>
    button.setAttribute("aria-pressed", String(i === number)));
  document.querySelectorAll("#timeline rect").forEach((bar) =>
    bar.classList.toggle("playing", Number(bar.dataset.number) === number));
}

function answer(found) {
  const timeline = byId("timeline"), list = byId("moments"), total = found.reference_seconds;
  timeline.replaceChildren();
  list.replaceChildren();
  found.moments.forEach((moment, number) => {
    const bar = document.createElementNS(SVG, "rect");
    bar.setAttribute("x", 1000 * moment.start / total);
    bar.setAttribute("width", Math.max(2, 1000 * (moment.end - moment.start) / total));
    bar.setAttribute("height", 120);
    bar.dataset.number = number;
    if (number === 0) bar.classList.add("first");
    bar.addEventListener("click", () => play(moment, number));
    timeline.append(bar);

    const button = document.createElement("button"), item = document.createElement("li");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const parts = [["rank", `${number + 1}.`],
      ["time", `${clock(moment.start)} to ${clock(moment.end)}`],
      ["score", `score ${moment.score.toFixed(3)}`]];
    for (const [name, text] of parts) {
      const part = document.createElement("span");
      part.className = name;
      part.textContent = text;
      button.append(part);
    }
    button.addEventListener("click", () => play(moment, number));
    item.append(button);
    list.append(item);
  });
  const high = Math.max(...found.curve, 0.001), low = Math.min(...found.curve, 0);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", found.curve.map((value, i) =>
    `${(1000 * (i + 0.5) / found.curve.length).toFixed(1)},` +
    `${(4 + 112 * (high - value) / (high - low)).toFixed(1)}`).join(" "));
  timeline.append(line);
  byId("length").textContent = clock(total);
  byId("settings").textContent = `${found.matcher}; ${found.settings.backbone}, ` +
    `${found.settings.frames_per_second} frames a second; the query is centred by ` +
    `${found.settings.query_centred_by}.` +
    (found.problems.length ? ` Damage: ${found.problems.join("; ")}` : "");
  byId("report").href = `api/searches/${found.id}/report`;
  byId("results").hidden = false;
  say(`${found.moments.length} moments found. Click one to play it.`);
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
  if (playUntil !== null && player.currentTime >= playUntil - 0.02) {
    player.pause();
    playUntil = null;
  }
  if (playUntil !== null) requestAnimationFrame(watch);
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
ask("api/videos").then((list) => { videos = list; fill(); }).catch((e) => say(e.message, true));
