// Draws the masks over the video, synchronised while it plays and while the user seeks; also works without a video.

const TOLERANCE_S = 0.004; // browsers report microseconds, containers store milliseconds

export class Player {
  constructor({ video, canvas, onFrame }) {
    Object.assign(this, { video, canvas, onFrame, frame: 0, times: [0], layer: null, hidden: new Set(), lit: null, hasVideo: false, playing: false, held: false });
    this.context = canvas.getContext("2d");
    this.opacity = 0.5;
    this.outlines = true;
    this.dim = false;
    this.session = 0;
    video.addEventListener("ended", () => this.playing && this.seek(0, true));
    video.addEventListener("seeked", () => this.shown(this.video.currentTime));
  }

  /** Show another job; `src` is the URL of the video, or null. */
  open(times, src) {
    this.pause();
    this.session++;
    this.times = times;
    this.layer = null;
    this.hidden.clear();
    this.frame = 0;
    this.setVideo(src);
  }

  setVideo(src) {
    this.hasVideo = false;
    this.video.hidden = true;
    this.video.removeAttribute("src");
    if (!src) return this.video.load();
    this.video.src = src;
    const session = this.session;
    this.video.onloadeddata = () => {
      if (session !== this.session) return;
      this.hasVideo = true;
      this.video.hidden = false;
      this.seek(this.frame);
      this.redraw();
    };
    this.video.onerror = () => this.video.removeAttribute("src"); // unsupported codec: show masks only
    this.watch(session);
  }

  /** Follow the frames that the browser presents. */
  watch(session) {
    const next = (callback) =>
      this.video.requestVideoFrameCallback ? this.video.requestVideoFrameCallback((_, data) => callback(data.mediaTime)) : requestAnimationFrame(() => callback(this.video.currentTime));
    const step = (time) => {
      if (session !== this.session || !this.video.src) return;
      this.shown(time);
      next(step);
    };
    next(step);
  }

  /** Handle a presented frame; after a seek, late reports of earlier frames are ignored. */
  shown(time) {
    if (!this.hasVideo || this.held) return;
    const last = this.times[this.times.length - 1];
    if (this.playing && time > last + this.gap(this.times.length - 1) + TOLERANCE_S) return this.seek(0, true); // end of the segmented part
    this.show(this.at(time));
  }

  /** Index of the frame presented at a time. */
  at(time) {
    let low = 0, high = this.times.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.times[middle] <= time + TOLERANCE_S) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  gap(frame) {
    const next = frame + 1 < this.times.length ? frame + 1 : frame;
    return next > 0 ? Math.max(0.001, this.times[next] - this.times[next - 1]) : 0.04;
  }

  show(frame) {
    if (frame !== this.frame || this.drawn !== this.layer) {
      this.frame = frame;
      this.redraw();
    }
    this.onFrame(frame);
  }

  seek(frame, keepPlaying = false) {
    frame = Math.max(0, Math.min(this.times.length - 1, frame));
    if (!keepPlaying) this.pause();
    this.held = !keepPlaying;
    if (this.hasVideo) {
      this.video.currentTime = this.times[frame] + this.gap(frame) * 0.4; // within the frame, away from its boundaries
      if (keepPlaying) this.video.play();
    }
    this.show(frame);
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  play() {
    this.playing = true;
    this.held = false;
    if (this.frame >= this.times.length - 1) this.seek(0, true);
    if (this.hasVideo) this.video.play().catch(() => this.pause());
    else this.tick(this.session, performance.now(), this.times[this.frame]);
    this.onFrame(this.frame);
  }

  /** Advance by the page's clock when there is no video. */
  tick(session, startedAt, from) {
    requestAnimationFrame((now) => {
      if (!this.playing || session !== this.session || this.hasVideo) return;
      const time = from + (now - startedAt) / 1000;
      if (time > this.times[this.times.length - 1] + this.gap(this.times.length - 1)) {
        this.show(0);
        return this.tick(session, now, this.times[0]);
      }
      this.show(this.at(time));
      this.tick(session, startedAt, from);
    });
  }

  pause() {
    this.playing = false;
    this.video.pause();
    this.onFrame(this.frame);
  }

  setLayer(layer) {
    this.layer = layer;
    if (this.canvas.width !== layer.width || this.canvas.height !== layer.height) {
      this.canvas.width = layer.width;
      this.canvas.height = layer.height;
      this.canvas.style.aspectRatio = `${layer.videoWidth} / ${layer.videoHeight}`;
      this.picture = new ImageData(layer.width, layer.height);
      this.pixels = new Uint32Array(this.picture.data.buffer);
    }
    this.redraw();
  }

  redraw() {
    const layer = this.layer;
    this.drawn = layer;
    if (!layer) return;
    const { width, height } = layer, labels = layer.map(this.frame), pixels = this.pixels;
    const fill = new Uint32Array(65536), line = new Uint32Array(65536);
    const strength = this.hasVideo ? this.opacity : Math.max(this.opacity, 0.9);
    for (const object of layer.objects) {
      if (this.hidden.has(object.id)) continue;
      const value = parseInt(object.color.slice(1), 16);
      const [r, g, b] = [value >> 16, (value >> 8) & 255, value & 255];
      const faded = this.lit !== null && this.lit !== object.id ? 0.25 : 1;
      const boost = this.lit === object.id ? Math.min(1, strength + 0.3) : strength;
      fill[object.id] = ((Math.round(255 * boost * faded) << 24) | (b << 16) | (g << 8) | r) >>> 0;
      line[object.id] = ((Math.round(255 * faded) << 24) | (b << 16) | (g << 8) | r) >>> 0;
    }
    const rest = this.dim && this.hasVideo ? 0xa0000000 : 0;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const label = labels[i];
        const color = fill[label];
        if (!color) pixels[i] = rest;
        else if (this.outlines && ((x + 1 < width && labels[i + 1] !== label) || (y + 1 < height && labels[i + width] !== label) || (x && labels[i - 1] !== label) || (y && labels[i - width] !== label))) pixels[i] = line[label];
        else pixels[i] = color;
      }
    }
    this.context.putImageData(this.picture, 0, 0);
  }
}
