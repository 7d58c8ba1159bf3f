"use strict";
// Draws the cosines of all patches with the one that was chosen by mouse, finger or arrow key.
// data-cosines holds the upper triangle of the N x N levels, row by row, a byte each: 0 is -1, 255 is 1.
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const palette = bytes(document.querySelector("main").dataset.palette); // 256 x red, green, blue

for (const figure of document.querySelectorAll(".similarity")) {
  const rows = Number(figure.dataset.rows), columns = Number(figure.dataset.columns), count = rows * columns;
  const levels = bytes(figure.dataset.cosines);
  const view = figure.querySelector("button"), mark = view.querySelector("span");
  const map = figure.querySelector(".drawn"), said = figure.querySelector("output");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  let chosen = Number(figure.dataset.patch);

  const level = (one, other) => {
    const first = Math.min(one, other), second = Math.max(one, other);
    return levels[first * count - (first * (first - 1)) / 2 + second - first];
  };

  const choose = (row, column) => {
    row = Math.min(Math.max(row, 0), rows - 1);
    column = Math.min(Math.max(column, 0), columns - 1);
    chosen = row * columns + column;
    const drawn = context.createImageData(columns, rows);
    let least = 255;
    for (let patch = 0; patch < count; patch++) {
      const value = level(chosen, patch);
      least = Math.min(least, value);
      drawn.data.set([...palette.subarray(3 * value, 3 * value + 3), 255], 4 * patch);
    }
    context.putImageData(drawn, 0, 0);
    map.src = canvas.toDataURL(); // an image prints and can be saved as any other
    mark.style.left = `${(100 * column) / columns}%`;
    mark.style.top = `${(100 * row) / rows}%`;
    said.textContent = `Row ${row + 1}, column ${column + 1}: cosines from ${(least / 127.5 - 1).toFixed(2)} to 1`;
    map.alt = `${map.dataset.name}. ${said.textContent}`;
  };

  view.addEventListener("click", (event) => {
    if (event.detail === 0) return; // pressed by a key: no place was pointed at
    const box = view.getBoundingClientRect();
    choose(Math.floor(((event.clientY - box.top) / box.height) * rows),
           Math.floor(((event.clientX - box.left) / box.width) * columns));
  });
  view.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault(); // the page would scroll
    choose(Math.floor(chosen / columns) + step[0], (chosen % columns) + step[1]);
  });
}
