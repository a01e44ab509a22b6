// Draws a layer of masks on a canvas: colours, outlines, hidden and highlighted objects.

const WEAK_STRENGTH = 0.4; // opacity of objects that are probably background, relative to the others

export class Painter {
  constructor(canvas) {
    Object.assign(this, { canvas, layer: null, frame: 0, hidden: new Set(), lit: new Set(), opacity: 0.5, outlines: true, dim: false, hasVideo: false });
    this.context = canvas.getContext("2d");
  }

  /** Show another layer, without its hidden objects. */
  setLayer(layer) {
    this.layer = layer;
    this.hidden = new Set(layer.objects.filter((object) => object.hidden).map((object) => object.id));
    this.lit = new Set();
    const { canvas } = this;
    if (!this.picture || canvas.width !== layer.width || canvas.height !== layer.height) {
      Object.assign(canvas, { width: layer.width, height: layer.height });
      canvas.style.aspectRatio = `${layer.videoWidth} / ${layer.videoHeight}`;
      this.picture = new ImageData(layer.width, layer.height);
      this.pixels = new Uint32Array(this.picture.data.buffer);
    }
    this.redraw();
  }

  clear() {
    this.layer = null;
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** Draw a frame, unless it is already shown. */
  draw(frame) {
    if (frame === this.frame) return;
    this.frame = frame;
    this.redraw();
  }

  /** Id of the visible object at a position of the pointer; 0: none. */
  objectAt({ clientX, clientY }) {
    if (!this.layer) return 0;
    const box = this.canvas.getBoundingClientRect(), { width, height } = this.layer;
    const scale = Math.min(box.width / width, box.height / height); // object-fit: contain
    const x = Math.floor((clientX - box.left - (box.width - width * scale) / 2) / scale);
    const y = Math.floor((clientY - box.top - (box.height - height * scale) / 2) / scale);
    if (x < 0 || y < 0 || x >= width || y >= height) return 0;
    const id = this.layer.map(this.frame)[y * width + x];
    return this.hidden.has(id) || !this.layer.objects.some((object) => object.id === id) ? 0 : id;
  }

  redraw() {
    if (!this.layer) return;
    const { width, height } = this.layer, labels = this.layer.map(this.frame), { pixels, outlines } = this;
    const { fill, line } = this.#colors();
    const rest = this.dim && this.hasVideo ? 0xa0000000 : 0;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const label = labels[i];
        const color = fill[label];
        if (!color) pixels[i] = rest;
        else if (outlines && ((x + 1 < width && labels[i + 1] !== label) || (y + 1 < height && labels[i + width] !== label) || (x && labels[i - 1] !== label) || (y && labels[i - width] !== label))) pixels[i] = line[label];
        else pixels[i] = color;
      }
    }
    this.context.putImageData(this.picture, 0, 0);
  }

  /** RGBA of the inside and of the outline, by object id. */
  #colors() {
    const fill = new Uint32Array(65536), line = new Uint32Array(65536);
    const strength = this.hasVideo ? this.opacity : Math.max(this.opacity, 0.9);
    const visible = this.layer.objects.filter((object) => !this.hidden.has(object.id));
    const others = visible.some((object) => this.lit.has(object.id)) ? 0.35 : 1; // of the opacity
    for (const object of visible) {
      this.context.fillStyle = object.color;
      const value = parseInt(this.context.fillStyle.slice(1), 16);
      const bgr = ((value & 255) << 16) | (value & 0xff00) | (value >> 16);
      const isLit = this.lit.has(object.id);
      const faded = isLit ? 1 : others * (object.weak ? WEAK_STRENGTH : 1);
      const inside = isLit ? Math.min(1, strength + 0.15) : strength;
      fill[object.id] = ((Math.round(255 * inside * faded) << 24) | bgr) >>> 0;
      line[object.id] = ((Math.round(255 * faded) << 24) | bgr) >>> 0;
    }
    return { fill, line };
  }
}
