// What is wrong with the page that is shown, as a list of sentences.
(() => {
  const root = document.documentElement;
  const faults = [];
  const name = node => (node.textContent || node.currentSrc || node.tagName).trim().slice(0, 60);
  const over = root.scrollWidth - root.clientWidth;
  if (over > 0) faults.push(`the page is ${over} pixels wider than the window`);
  for (const image of document.images)
    if (!image.complete || image.naturalWidth === 0) faults.push(`no image: ${image.src}`);

  // Words in drawings: inside the drawing, and none over another.
  for (const drawing of document.querySelectorAll(".drawing svg")) {
    const frame = drawing.getBoundingClientRect();
    const texts = [...drawing.querySelectorAll("text")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1)
        faults.push(`outside its drawing: ${name(texts[i])}`);
      // Letters are lower than the box of their line.
      boxes.slice(i + 1).forEach((b, j) => {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 0.3 * Math.min(a.height, b.height))
          faults.push(`over each other: ${name(texts[i])} and ${name(texts[i + 1 + j])}`);
      });
      // Words that begin in a box end in it.
      for (const rect of drawing.querySelectorAll("rect")) {
        const box = rect.getBoundingClientRect();
        const x = (a.left + a.right) / 2, y = (a.top + a.bottom) / 2;
        const isInside = x > box.left && x < box.right && y > box.top && y < box.bottom;
        if (isInside && (a.left < box.left || a.right > box.right))
          faults.push(`wider than its box: ${name(texts[i])}`);
      }
    });
  }

  // Text and its ground: WCAG's 4.5, 3 for large letters.
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const mixed = (front, back) => back.map((c, i) => front[i] * front[3] + c * (1 - front[3]));
  const light = color => color.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const grounds = new Map();
  const ground = node => {
    if (!node) return [255, 255, 255];
    if (!grounds.has(node))
      grounds.set(node, mixed(rgba(getComputedStyle(node).backgroundColor),
                              ground(node.parentElement)));
    return grounds.get(node);
  };
  const seen = new Set();
  const check = (node, color, back) => {
    const style = getComputedStyle(node);
    const front = mixed(rgba(color), back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const wanted = size >= 24 || (size >= 18.6 && style.fontWeight >= 600) ? 3 : 4.5;
    const key = `${node.className.baseVal ?? node.className} ${color} ${back.map(Math.round)}`;
    if (ratio >= wanted || seen.has(key)) return;
    seen.add(key);
    const pair = `${color} on ${back.map(Math.round)}`;
    faults.push(`contrast ${ratio.toFixed(2)} of ${pair}: ${name(node)}`);
  };
  for (const node of document.querySelectorAll(
      ".md-typeset :is(p, li, td, th, code, span, figcaption, h1, h2, h3, dt, dd)")) {
    const hasText = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (hasText && node.offsetWidth) check(node, getComputedStyle(node).color, ground(node));
  }
  for (const text of document.querySelectorAll(".drawing text")) {
    // The last box drawn before the words is the one that they are in.
    const a = text.getBoundingClientRect();
    let back = ground(text.closest("figure"));
    for (const rect of text.closest("svg").querySelectorAll("rect")) {
      const box = rect.getBoundingClientRect();
      const x = (a.left + a.right) / 2, y = (a.top + a.bottom) / 2;
      if (x > box.left && x < box.right && y > box.top && y < box.bottom)
        back = rgba(getComputedStyle(rect).fill).slice(0, 3);
    }
    check(text, getComputedStyle(text).fill, back);
  }
  return faults;
})()
