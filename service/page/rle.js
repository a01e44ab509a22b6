// COCO run lengths: text to runs, runs to pixels.

/** The run lengths of `counts`: zeros and ones in turn, down the columns, zeros first. */
export function runs(counts) {
  const found = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0, shift = 0, digit;
    do {
      digit = counts.charCodeAt(at++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16 && shift < 32) value |= -1 << shift;
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

/** Pixels of a mask. */
export function area(lengths) {
  let sum = 0;
  for (let i = 1; i < lengths.length; i += 2) sum += lengths[i];
  return sum;
}

/** Write `label` into a map of every `step`-th pixel of a picture of `height` rows. */
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
