// Decodes COCO RLE to run lengths, areas and pixels.

/** Run lengths of `counts`: alternately 0 and 1, starting with 0, column-major. */
export function runs(counts) {
  const lengths = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0, shift = 0, digit;
    do {
      digit = counts.charCodeAt(at++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16 && shift < 32) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
  }
  return lengths;
}

/** Number of pixels of a mask. */
export function area(lengths) {
  let sum = 0;
  for (let i = 1; i < lengths.length; i += 2) sum += lengths[i];
  return sum;
}

/** Write `label` into a map that has every `step`-th pixel of a frame with `height` rows. */
export function paint(map, width, height, step, lengths, label) {
  let start = 0;
  for (let i = 0; i < lengths.length; i++) {
    const stop = start + lengths[i];
    if (i % 2) {
      for (let column = Math.floor(start / height); column * height < stop; column++) {
        if (column % step) continue;
        const top = Math.max(0, start - column * height), bottom = Math.min(height, stop - column * height);
        const x = column / step;
        for (let y = Math.ceil(top / step); y * step < bottom; y++) map[y * width + x] = label;
      }
    }
    start = stop;
  }
}
