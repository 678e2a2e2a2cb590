"use strict";
// Whatever comes from files or the server is set as text, never as HTML.

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds * 100)), s = Math.floor(whole / 100);
  const two = (n) => String(n).padStart(2, "0");
  const head = s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}`
    : `${Math.floor(s / 60)}`;
  return `${head}:${two(s % 60)}.${two(whole % 100)}`;
}

function make(tag, name, text) {
  const part = document.createElement(tag);
  if (name) part.className = name;
  if (text !== undefined) part.textContent = text;
  return part;
}

// Pictures are asked for when they come near the window, two at a time as the server draws them: a
// browser opens six connections, and what people say shall not wait for pictures.
const waiting = [];
let drawing = 0;
const near = new IntersectionObserver((seen) => seen.forEach(({ isIntersecting, target }) => {
  if (!isIntersecting) return;
  near.unobserve(target);
  waiting.push(target);
  drawNext();
}), { rootMargin: "50%" });

function draw(picture, address) {
  picture.dataset.address = address;
  near.unobserve(picture);
  if (address) near.observe(picture);
  else picture.removeAttribute("src");
}

async function drawNext() {
  if (drawing >= 2 || !waiting.length) return;
  const picture = waiting.shift(), { address } = picture.dataset;
  if (picture.isConnected && address) {
    drawing += 1;
    const made = make("img");
    made.src = address;
    const fine = await made.decode().then(() => true, () => false);
    drawing -= 1;
    if (picture.dataset.address !== address) near.observe(picture);
    else if (fine) picture.src = address;
    else picture.removeAttribute("src");
  }
  drawNext();
}

// A stretch of a video as a row of pictures, with two handles where `changed` is given: dragged, or
// moved by arrow keys (with shift by a second). `seek` is told the time that is pointed at.
class Scrubber {
  constructor(place, { title, seek, changed, settled }) {
    Object.assign(this, { place, seek, changed, settled, from: 0, to: 0, start: 0, end: 0 });
    place.classList.add("scrubber");
    this.picture = make("img");
    this.picture.alt = "";
    this.head = make("span", "head");
    this.shades = [make("span", "out"), make("span", "out")];
    place.replaceChildren(this.picture, ...this.shades, this.head);
    this.head.hidden = true;
    this.handles = changed ? ["start", "end"].map((edge) => this.handle(edge, title)) : [];
    place.append(...this.handles);
    this.follow(place, (time) => seek && seek(time));
    this.paint();
  }

  handle(edge, title) {
    const handle = make("span", "handle");
    handle.tabIndex = 0;
    handle.setAttribute("role", "slider");
    handle.setAttribute("aria-label", `${title}: ${edge}`);
    handle.addEventListener("keydown", (event) => {
      const sign = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!sign) return;
      event.preventDefault();
      event.stopPropagation();
      this.move(edge, this[edge] + sign * (event.shiftKey ? 1 : 0.04));
      if (this.settled) this.settled();
    });
    this.follow(handle, (time) => this.move(edge, time), () => this.settled && this.settled());
    return handle;
  }

  // Calls `moved` with the time under the pointer while a button is held.
  follow(part, moved, done = () => {}) {
    const at = (event) => {
      const box = this.place.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      moved(this.from + share * (this.to - this.from));
    };
    part.addEventListener("pointerdown", (event) => {
      if (this.to <= this.from) return;
      event.preventDefault();
      event.stopPropagation();
      part.focus();
      part.setPointerCapture(event.pointerId);
      at(event);
      part.onpointermove = at;
    });
    for (const end of ["pointerup", "pointercancel"])
      part.addEventListener(end, () => {
        if (part.onpointermove) done();
        part.onpointermove = null;
      });
  }

  move(edge, time) {
    const least = 0.04, rounded = Math.round(time * 1000) / 1000;
    if (edge === "start") this.start = Math.min(Math.max(rounded, this.from), this.end - least);
    else this.end = Math.max(Math.min(rounded, this.to), this.start + least);
    this.paint();
    this.changed();
    if (this.seek) this.seek(this[edge]);
  }

  show(video, from, to, start = from, end = to, count = 12) {
    Object.assign(this, { from, to, start, end });
    draw(this.picture, video && to > from
      ? `api/videos/${video}/pictures?start=${from}&end=${to}&count=${count}` : "");
    this.paint();
  }

  paint() {
    const share = (time) => this.to > this.from ? 100 * (time - this.from) / (this.to - this.from) : 0;
    const [before, after] = this.shades;
    before.style.left = "0";
    before.style.width = `${share(this.start)}%`;
    after.style.right = "0";
    after.style.width = this.to > this.from ? `${100 - share(this.end)}%` : "0";
    this.handles.forEach((handle, number) => {
      const time = number ? this.end : this.start;
      handle.hidden = this.to <= this.from;
      handle.style.left = `${share(time)}%`;
      handle.setAttribute("aria-valuemin", this.from);
      handle.setAttribute("aria-valuemax", this.to);
      handle.setAttribute("aria-valuenow", time);
      handle.setAttribute("aria-valuetext", clock(time));
    });
  }

  at(time) {
    this.head.hidden = !(time >= this.from && time <= this.to && this.to > this.from);
    this.head.style.left = `${100 * (time - this.from) / (this.to - this.from)}%`;
  }
}
