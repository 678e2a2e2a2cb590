"use strict";
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SIDES = ["query", "reference"];
// What the list of references offers for "all videos of the index"; ids are longer.
const INDEX = "index";
let videos = [], formats = {}, indexed = 0, running = null, shown = null, active = "query", backwards = null, round = 0;
const scrubbers = {};

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

async function fetched(path, options) {
  const answer = await fetch(path, options).catch(() => {
    throw new Error("relocal serve does not answer: is it still running?");
  });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Error(error || `the server answered ${answer.status}`);
}

async function ask(path, method = "GET", body = undefined) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  return (await fetched(path, { method, headers, body: body && JSON.stringify(body) })).json();
}

// ---- videos, and the two players

// A format that the browser does not play is asked for again as a preview that the server makes; so
// is one of which it plays the sound alone, or cannot tell the length.
function load(player, id, note, ready = () => {}) {
  const tell = (text) => {
    if (!note) return;
    note.textContent = text;
    note.hidden = !text;
  };
  tell("");
  player.onloadedmetadata = () => {
    if (!player.videoWidth || !Number.isFinite(player.duration)) return player.onerror();
    tell("");
    ready();
  };
  player.onerror = () => {
    if (!player.getAttribute("src")) return;
    if (player.src.endsWith("/preview"))
      tell("This browser cannot play this video; it can be searched all the same.");
    else {
      tell("Making a copy that this browser can play …");
      player.src = `api/videos/${id}/preview`;
    }
  };
  if (id) player.src = `api/videos/${id}`;
  else {
    player.removeAttribute("src");
    player.load();
  }
}

function choose(side, id) {
  byId(side).value = id;
  const video = videos.find((each) => each.id === id);
  const scrubber = scrubbers[side], player = byId(`${side}-player`);
  scrubber.show(video && id, 0, (video && video.duration) || 0);
  load(player, video ? id : "", byId(`${side}-note`), () => {
    // Some files do not state how long they are.
    if (!scrubber.to) scrubber.show(id, 0, player.duration, scrubber.start, scrubber.end || player.duration);
    tellSpan();
  });
  if (side === "query") tellSpan();
  document.querySelector(`[data-side=${side}]`).classList.toggle("empty", !video && id !== INDEX);
  byId("find").disabled = !(byId("query").value && byId("reference").value) || running !== null;
  tellLike();
}

function fill() {
  for (const side of SIDES) {
    const select = byId(side), chosen = select.value;
    select.replaceChildren(new Option(videos.length ? "choose" : "none yet", ""));
    if (side === "reference" && indexed)
      select.add(new Option(`all ${indexed} videos of the index`, INDEX));
    for (const v of videos)
      select.add(new Option(v.name + (v.duration ? ` (${clock(v.duration)})` : ""), v.id));
    select.value = [...select.options].some((o) => o.value === chosen) ? chosen : "";
  }
}

async function example() {
  byId("example").hidden = true;
  say("Drawing two short films …");
  try {
    const { videos: films, start, end } = await ask("api/example", "POST", {});
    videos.push(...films.filter((film) => !videos.some((each) => each.id === film.id)));
    fill();
    SIDES.forEach((side, number) => choose(side, films[number].id));
    setClip(start, end);
    say("In the first film somebody does jumping jacks, marked here. Where in the second?");
    byId("find").focus();
  } catch (error) {
    say(error.message, true);
  }
}

// What was said of one video's answers serves in another.
function tellLike() {
  const place = byId("reference").value;
  const elsewhere = shown && place && place !== (shown.about.reference || INDEX);
  const said = shown ? shown.about.examples.length +
    shown.moments.filter((moment) => moment.judged !== null).length : 0;
  byId("like-label").hidden = !(elsewhere && said);
  byId("like-label").lastChild.textContent = `with the ${said} judged before`;
}

function setClip(start, end) {
  Object.assign(scrubbers.query, { start, end });
  scrubbers.query.paint();
  tellSpan();
}

async function upload(side, file) {
  if (!file) return;
  say(`Uploading ${file.name} …`);
  try {
    const answer = await fetched("api/videos", {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream",
        "X-File-Name": encodeURIComponent(file.name) },
      body: file,
    });
    const video = await answer.json();
    videos.push(video);
    fill();
    choose(side, video.id);
    say("");
  } catch (error) {
    say(`${file.name}: ${error.message}`, true);
  }
}

function tellSpan() {
  const { start, end, from, to } = scrubbers.query, whole = start === from && end === to;
  byId("span").textContent = to === 0 ? "" : whole ? "all of it"
    : `${clock(start)} to ${clock(end)}`;
}

// What was marked before gives way to a start behind its end, and to an end before its start.
function mark(edge) {
  const clip = scrubbers.query, time = byId("query-player").currentTime;
  if (!clip.to) return;
  if (edge === "start" && time >= clip.end) clip.end = clip.to;
  if (edge === "end" && time <= clip.start) clip.start = clip.from;
  clip.move(edge, time);
}

function shuttle(player, key) {
  clearInterval(backwards);
  backwards = null;
  if (key === "k") player.pause();
  else if (key === "l") {
    player.playbackRate = player.paused ? 1 : Math.min(2 * player.playbackRate, 8);
    player.play().catch(() => {});
  } else {
    player.pause();
    backwards = setInterval(() => {
      player.currentTime = Math.max(0, player.currentTime - 0.1);
      if (player.currentTime === 0) clearInterval(backwards);
    }, 100);
  }
}

// ---- searching

async function find() {
  const { start, end, from, to } = scrubbers.query, place = byId("reference").value;
  const whole = start === from && end === to;
  try {
    const { id } = await ask("api/searches", "POST", {
      query: byId("query").value,
      ...(place === INDEX ? { index: true } : { reference: place }),
      ...(whole ? {} : { query_start: start, query_end: end }),
      every: byId("every").checked,
      ...(byId("like-label").hidden || !byId("like").checked ? {} : { like: shown.id }),
    });
    await follow(id);
  } catch (error) {
    say(error.message, true);
  }
}

async function follow(id) {
  const busy = (yes) => {
    running = yes ? id : null;
    byId("find").disabled = yes || !(byId("query").value && byId("reference").value);
    byId("progress").hidden = byId("cancel").hidden = !yes;
  };
  busy(true);
  location.hash = id;  // a reload goes on from here
  byId("progress").value = 0;
  say("Waiting …");
  const begun = performance.now();
  try {
    for (;;) {
      const now = await ask(`api/searches/${id}`);
      if (now.state === "done") {
        await history();
        show(now);
        break;
      }
      if (now.state === "failed") throw new Error(now.error);
      if (now.state === "cancelled") { say("Stopped."); break; }
      byId("progress").value = now.share;
      if (now.doing) {
        const spent = (performance.now() - begun) / 1000;
        const left = now.share > 0.1 && spent > 2 ? spent * (1 - now.share) / now.share : 0;
        say(`Reading ${now.doing}: ${Math.round(100 * now.share)} %` +
          (left > 1 ? `, ${clock(left).split(".")[0]} left` : ""));
      }
      await new Promise((done) => setTimeout(done, 250));
    }
  } catch (error) {
    say(error.message, true);
  }
  busy(false);
  if (shown) location.hash = shown.id;
}

function title({ query_name, start, end, place }) {
  const part = start === null && end === null ? ""
    : `, ${clock(start || 0)} to ${end === null ? "its end" : clock(end)},`;
  return `${query_name}${part} in ${place}`;
}

async function history() {
  const all = (await ask("api/searches")).reverse();
  const done = all.filter((each) => each.state === "done");
  byId("history").replaceChildren(...done.map((each) => {
    const button = make("button", "", title(each.about));
    button.type = "button";
    button.dataset.id = each.id;
    button.addEventListener("click", () => reopen(each.id));
    return button;
  }));
  byId("history").hidden = done.length < (shown ? 2 : 1);
  return all;
}

async function reopen(id) {
  try {
    const found = await ask(`api/searches/${id}`);
    if (found.moments) show(found);
  } catch (error) {
    say(error.message, true);
  }
}

// What was judged ranks the others anew, as often as it is judged.
async function again(id) {
  const mine = ++round;
  byId("told").textContent = "Searching again with what you said …";
  let now;
  do {
    await new Promise((done) => setTimeout(done, 100));
    now = await ask(`api/searches/${id}`);
    // What is being dragged is not taken away.
  } while (now.state !== "done" || byId("moments").querySelector(".handle:active"));
  if (mine !== round || shown.id !== id) return;
  show(now, true);
  if (now.error) say(now.error, true);
}

// ---- answers

function rect(start, end, total, height) {
  const part = document.createElementNS(SVG, "rect");
  part.setAttribute("x", 1000 * start / total);
  part.setAttribute("width", Math.max(3, 1000 * (end - start) / total));
  part.setAttribute("height", height);
  return part;
}

// An answer: a picture that plays in a loop, its bounds to be dragged, yes and no.
function card(found, moment, place) {
  const item = make("li"), several = found.about.reference === null;
  const id = several ? moment.video : found.about.reference;
  const total = (several ? moment.duration : found.reference_seconds) || moment.end;
  const url = `api/searches/${found.id}/moments/${moment.number}`;
  item.tabIndex = -1;
  const head = make("div", "head-line"), time = make("span", "time");
  head.append(make("span", "rank", `${place + 1}.`), time);
  const sure = moment.probability === null ? "" : `probability ${moment.probability.toFixed(2)}, `;
  head.append(make("span", "score", `${sure}score ${moment.score.toFixed(3)}`));
  if (several)
    head.append(make("span", "name", moment.name + (id ? "" : " (its file is no longer there)")));

  const stage = make("button", "stage"), picture = make("img"), player = make("video");
  stage.type = "button";
  stage.disabled = !id;
  picture.alt = "";
  player.muted = player.playsInline = true;
  player.hidden = true;
  stage.append(picture, player, make("span", "", "▶ play"));
  const where = document.createElementNS(SVG, "svg");
  where.setAttribute("class", "where");
  where.setAttribute("viewBox", "0 0 1000 10");
  where.setAttribute("preserveAspectRatio", "none");
  where.setAttribute("aria-hidden", "true");

  const middle = () => {
    const at = (moment.start + moment.end) / 2;
    draw(picture, `api/videos/${id}/pictures?start=${at}&end=${at + 0.01}&count=1`);
  };
  const tell = () => {
    time.textContent = `${clock(moment.start)} to ${clock(moment.end)}`;
    stage.setAttribute("aria-label", `Play answer ${place + 1}, ${time.textContent}`);
    where.replaceChildren(rect(moment.start, moment.end, total, 10));
    item.classList.toggle("yes", moment.judged === true);
    item.classList.toggle("no", moment.judged === false);
    for (const [button, said] of buttons)
      button.setAttribute("aria-pressed", String(moment.judged === said));
  };
  const keep = async (changes) => {
    Object.assign(moment, changes);
    tell();
    try {
      const { state } = await ask(url, "PATCH", changes);
      if (state !== "done") await again(found.id);
    } catch (error) {
      say(error.message, true);
    }
  };
  const buttons = [["Y", "yes", true], ["N", "no", false]].map(([key, word, said]) => {
    const button = make("button");
    button.type = "button";
    button.append(make("kbd", "", key), ` ${word}`);
    button.addEventListener("click", () => keep({ judged: moment.judged === said ? null : said }));
    return [button, said];
  });

  const loop = () => {
    if (player.paused || !player.isConnected) return;
    if (player.ended || player.currentTime >= moment.end - 0.02 ||
        player.currentTime < moment.start - 0.1) player.currentTime = moment.start;
    trim.at(player.currentTime);
    requestAnimationFrame(loop);
  };
  stage.addEventListener("click", () => {
    if (!player.getAttribute("src"))
      load(player, id, null, () => { player.currentTime = moment.start; });
    player.hidden = false;
    stage.lastChild.hidden = true;
    picture.hidden = true;
    choosePlaying(place);
    if (player.paused) player.play().then(loop).catch(() => {});
    else player.pause();
  });
  player.addEventListener("play", loop);

  const strip = make("div");
  const trim = new Scrubber(strip, {
    title: `Answer ${place + 1}`,
    seek: (at) => { if (player.getAttribute("src")) player.currentTime = at; },
    changed: () => {
      Object.assign(moment, { start: trim.start, end: trim.end });
      tell();
    },
    settled: () => {
      middle();
      keep({ start: trim.start, end: trim.end });
    },
  });
  const judge = make("div", "judge");
  judge.append(...buttons.map(([button]) => button));
  item.append(head, stage, where, strip, judge);
  if (id) {
    const around = Math.max((moment.end - moment.start) / 2, 0.5);
    middle();
    trim.show(id, Math.max(0, moment.start - around), Math.min(total, moment.end + around),
      moment.start, moment.end, 8);
  } else strip.hidden = true;
  tell();
  item.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const near = { ArrowUp: -1, ArrowDown: 1 }[event.key], key = event.key.toLowerCase();
    if (near) focusCard(item, near);
    else if (key === "y" || key === "n") buttons[key === "y" ? 0 : 1][0].click();
    else if (event.key === "Enter" && event.target === item) stage.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return item;
}

function focusCard(item, step) {
  const open = [...byId("moments").children].filter((each) => !each.hidden);
  const next = open[open.indexOf(item) + step];
  if (next) next.focus();
}

function choosePlaying(number) {
  document.querySelectorAll("#timeline rect").forEach((bar) =>
    bar.classList.toggle("chosen", Number(bar.dataset.number) === number));
  [...byId("moments").children].forEach((item, each) => {
    if (each !== number) item.querySelector("video").pause();
  });
}

function drawTimeline(found) {
  const timeline = byId("timeline"), total = found.reference_seconds;
  timeline.replaceChildren(...found.moments.map((moment, number) => {
    const part = rect(moment.start, moment.end, total, 60);
    part.dataset.number = number;
    part.setAttribute("class", { true: "yes", false: "no", null: "" }[moment.judged]);
    part.addEventListener("click", () => {
      const item = byId("moments").children[number];
      item.scrollIntoView({ block: "nearest" });
      item.querySelector(".stage").click();
    });
    return part;
  }));
  const high = Math.max(...found.curve, 0.001), low = Math.min(...found.curve, 0);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", found.curve.map((value, i) =>
    `${(1000 * (i + 0.5) / found.curve.length).toFixed(1)},` +
    `${(2 + 56 * (high - value) / (high - low)).toFixed(1)}`).join(" "));
  timeline.append(line);
  byId("length").textContent = clock(total);
}

function filter() {
  const least = byId("least").value / 100;
  let many = 0;
  [...byId("moments").children].forEach((item, number) => {
    const { probability, judged } = shown.moments[number];
    item.hidden = probability !== null && probability < least && judged !== true;
    many += !item.hidden;
  });
  byId("least-value").textContent = `${least.toFixed(2)} probable: ${many} of ${shown.moments.length}`;
  tellSave();
}

// Answers of an index are in several videos, which not every format holds.
function offer(several) {
  const select = byId("format"), chosen = select.value;
  select.replaceChildren(...Object.entries(formats).filter(([, [, all]]) => all || !several)
    .map(([name, [words]]) => new Option(words, name)));
  select.value = chosen;
  if (!select.value) select.value = several ? "csv" : "webvtt";
}

async function save(event) {
  event.preventDefault();
  try {
    const answer = await fetched(byId("save").href), link = make("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = answer.headers.get("Content-Disposition").split('"')[1];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function tellSave() {
  const least = byId("least-label").hidden ? 0 : byId("least").value / 100;
  byId("save").href = `api/searches/${shown.id}/export?format=${byId("format").value}&least=${least}`;
  byId("report").href = `api/searches/${shown.id}/report?least=${least}`;
}

function show(found, anew = false) {
  shown = found;
  location.hash = found.id;
  const several = found.about.reference === null, many = found.moments.length;
  byId("results").hidden = false;
  byId("results-title").textContent = title(found.about);
  // Who has gone on to something else is not called back.
  const here = document.activeElement, stay = anew && here !== document.body && !byId("moments").contains(here);
  byId("moments").replaceChildren(...found.moments.map((m, number) => card(found, m, number)));
  // A curve is of one video.
  for (const id of ["timeline", "ends"]) byId(id).toggleAttribute("hidden", several);
  if (!several) drawTimeline(found);
  byId("least-label").hidden = !found.moments.some((m) => m.probability !== null);
  byId("settings").textContent = `${found.matcher}; ${found.settings.backbone}, ` +
    `${found.settings.frames_per_second} frames a second; the query is centred by ` +
    `${found.settings.query_centred_by}.` +
    (found.problems.length ? ` Damage: ${found.problems.join("; ")}` : "");
  if (!anew) byId("least").value = found.about.every ? 50 : 0;
  offer(several);
  filter();
  for (const button of byId("history").children)
    button.setAttribute("aria-current", String(button.dataset.id === found.id));
  byId("history").hidden = byId("history").children.length < 2;
  const said = [["yes", true], ["no", false]].map(([word, judged]) =>
    [word, found.moments.filter((moment) => moment.judged === judged).length]);
  byId("told").textContent = [
    found.count && (found.count.low === found.count.high ? `${found.count.low} in all`
      : `${found.count.low} to ${found.count.high} in all (95 %)`),
    !many && "nothing found",
    found.about.examples.length && `with ${found.about.examples.length} judged before`,
    !found.moments.some((moment) => moment.judged) && found.presence,
    ...said.map(([word, count]) => count && `you said ${word} to ${count}`),
  ].filter(Boolean).join("; ");
  say("");
  tellLike();
  if (!anew) byId("results").querySelector(".bar").scrollIntoView({ block: "start" });
  // The next one to judge.
  const next = found.moments.findIndex((moment) => moment.judged === null);
  if (many && !stay) byId("moments").children[Math.max(next, 0)].focus({ preventScroll: !anew });
}

// ---- what people do

for (const side of SIDES) {
  const section = document.querySelector(`[data-side=${side}]`), player = byId(`${side}-player`);
  scrubbers[side] = new Scrubber(byId(`${side}-scrubber`), {
    title: "Clip",
    seek: (time) => { player.currentTime = time; },
    changed: side === "query" ? tellSpan : undefined,
  });
  byId(side).addEventListener("change", () => choose(side, byId(side).value));
  byId(`${side}-file`).addEventListener("change", async (event) => {
    await upload(side, event.target.files[0]);
    event.target.value = "";
  });
  player.addEventListener("timeupdate", () => scrubbers[side].at(player.currentTime));
  player.addEventListener("click", () => player.paused ? player.play() : player.pause());
  for (const event of ["focusin", "pointerdown"])
    section.addEventListener(event, () => { active = side; });
  section.addEventListener("dragover", (event) => {
    event.preventDefault();
    section.classList.add("over");
  });
  section.addEventListener("dragleave", () => section.classList.remove("over"));
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    section.classList.remove("over");
    upload(side, event.dataTransfer.files[0]);
  });
}
// A file that misses both places shall not replace the page.
for (const event of ["dragover", "drop"])
  document.addEventListener(event, (each) => each.preventDefault());

document.addEventListener("keydown", (event) => {
  const on = event.target.tagName;
  if (event.ctrlKey || event.metaKey || event.altKey || on === "INPUT" || on === "SELECT") return;
  const player = byId(`${active}-player`), key = event.key.toLowerCase();
  const arrow = { arrowleft: -1, arrowright: 1 }[key];
  if (!player.getAttribute("src")) return;
  if (key === "i" || key === "o") mark(key === "i" ? "start" : "end");
  else if ("jkl".includes(key)) shuttle(player, key);
  else if (key === " " && on !== "BUTTON" && on !== "SUMMARY" && on !== "A") {
    if (player.paused) shuttle(player, "l");
    else player.pause();
  } else if (arrow) {
    player.pause();
    player.currentTime = Math.max(0, player.currentTime + arrow * (event.shiftKey ? 1 : 0.04));
  } else return;
  event.preventDefault();
});
byId("mark-start").addEventListener("click", () => mark("start"));
byId("mark-end").addEventListener("click", () => mark("end"));
byId("whole").addEventListener("click", () => choose("query", byId("query").value));
byId("find").addEventListener("click", find);
byId("example").addEventListener("click", example);
byId("cancel").addEventListener("click", () => {
  if (running) ask(`api/searches/${running}`, "DELETE").catch(() => {});
});
byId("least").addEventListener("input", filter);
byId("format").addEventListener("change", tellSave);
byId("save").addEventListener("click", save);
// Back and forward go through the answers.
window.addEventListener("hashchange", () => {
  const id = location.hash.slice(1);
  if (id && id !== running && !(shown && id === shown.id)) reopen(id);
});

const begun = ["api/videos", "api/index", "api/formats"].map((path) => ask(path));
Promise.all([...begun, history()]).then(async ([list, index, known, all]) => {
  videos = list;
  indexed = index.videos;
  formats = known;
  fill();
  SIDES.forEach((side) => choose(side, ""));
  byId("example").hidden = videos.length > 0;
  // A reload shows what was shown, or goes on to wait for it.
  const kept = all.find((each) => each.id === location.hash.slice(1));
  if (kept) {
    choose("query", kept.about.query);
    choose("reference", kept.about.reference || INDEX);
    const { start, end } = kept.about;
    setClip(start || 0, end || scrubbers.query.to);
    byId("every").checked = kept.about.every === true;
    await follow(kept.id);
  } else if (indexed) choose("reference", INDEX);
}).catch((error) => say(error.message, true));
