// Plays the frames of a result: the video that the service keeps of exactly these frames, or the clock of the page.

const TOLERANCE_S = 0.004; // browsers report microseconds, containers store milliseconds

/** Index of the frame presented at a time. */
export function frameAt(times, time) {
  let low = 0, high = times.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= time + TOLERANCE_S) low = middle;
    else high = middle - 1;
  }
  return low;
}

export class Player {
  constructor({ video, onFrame }) {
    Object.assign(this, { video, onFrame, frame: 0, times: [0], hasVideo: false, playing: false, held: false, session: 0 });
    video.addEventListener("ended", () => this.playing && this.seek(0, true));
    if (!video.requestVideoFrameCallback) video.addEventListener("timeupdate", () => this.shown(video.currentTime));
    video.addEventListener("seeked", () => this.shown(this.video.currentTime));
  }

  /** Show other frames; `times` are seconds from the first one, `src` is the URL of their video, or null. */
  open(times, src) {
    this.playing = false;
    this.video.pause();
    this.session++;
    Object.assign(this, { times, frame: 0, hasVideo: false, held: false });
    this.video.hidden = true;
    this.video.removeAttribute("src");
    this.onFrame(0);
    if (!src) return this.video.load();
    this.video.src = src;
    const session = this.session;
    this.video.onloadeddata = () => {
      if (session !== this.session) return;
      this.hasVideo = true;
      this.video.hidden = false;
      this.seek(this.frame);
    };
    this.video.onerror = () => this.video.removeAttribute("src"); // shows the masks only
    this.watch(session);
  }

  /** Follow the frames that the browser presents. */
  watch(session) {
    this.video.requestVideoFrameCallback?.((_, { mediaTime }) => {
      if (session !== this.session || !this.video.src) return;
      this.shown(mediaTime);
      this.watch(session);
    });
  }

  /** Handle a presented frame; after a seek, late reports of earlier frames are ignored. */
  shown(time) {
    if (!this.hasVideo) return;
    if (this.held) return this.onFrame(this.frame); // the picture of the frame may be newer than its masks
    this.show(frameAt(this.times, time));
  }

  gap(frame) {
    const next = frame + 1 < this.times.length ? frame + 1 : frame;
    return next > 0 ? Math.max(0.001, this.times[next] - this.times[next - 1]) : 0.04;
  }

  show(frame) {
    this.frame = frame;
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
    else this.tick(this.session);
    this.onFrame(this.frame);
  }

  /** Show one frame after the other when there is no video. */
  tick(session) {
    setTimeout(() => {
      if (!this.playing || session !== this.session) return;
      this.show((this.frame + 1) % this.times.length);
      this.tick(session);
    }, 1000 * this.gap(this.frame));
  }

  pause() {
    this.playing = false;
    this.video.pause();
    this.onFrame(this.frame);
  }
}
