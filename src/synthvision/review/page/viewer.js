// Zoom, pan and brightness of the one image on the stage: by wheel, pinch, drag, buttons and keys.

const MOST = 8;

export class Viewer {
  constructor(stage, zoomOutput, brightness) {
    this.stage = stage;
    this.zoomOutput = zoomOutput;
    this.brightness = brightness;
    this.pointers = new Map();
    this.reset();
    brightness.addEventListener("input", () => this.draw());
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    stage.addEventListener("dblclick", () => (this.zoom > 1 ? this.fit() : this.zoomBy(2)));
  }

  // A new picture is shown whole; the brightness stays as the reader set it.
  show(image) {
    this.stage.replaceChildren(image);
    this.fit();
  }

  fit() {
    this.zoom = 1;
    this.x = this.y = 0;
    this.draw();
  }

  reset() {
    this.brightness.value = 100;
    this.fit();
  }

  brighten(by) {
    this.brightness.value = Number(this.brightness.value) + by;
    this.draw();
  }

  // Zooms about a point given from the stage's middle, which then stays where it is.
  zoomBy(factor, x = 0, y = 0) {
    const zoom = Math.min(MOST, Math.max(1, this.zoom * factor));
    const ratio = zoom / this.zoom;
    this.zoom = zoom;
    this.panTo(x - (x - this.x) * ratio, y - (y - this.y) * ratio);
  }

  panTo(x, y) {
    const room = (side) => (side * (this.zoom - 1)) / 2;
    const [across, down] = [room(this.stage.clientWidth), room(this.stage.clientHeight)];
    this.x = Math.min(across, Math.max(-across, x));
    this.y = Math.min(down, Math.max(-down, y));
    this.draw();
  }

  // A step is a tenth of the stage; a picture that is shown whole stays.
  panBy(right, down) {
    this.panTo(this.x + (right * this.stage.clientWidth) / 10, this.y + (down * this.stage.clientHeight) / 10);
  }

  draw() {
    const image = this.stage.firstElementChild;
    if (image) {
      // nothing where nothing is changed: a filter costs time with every new image
      const { x, y, zoom } = this;
      image.style.transform = zoom === 1 ? "" : `translate(${x}px, ${y}px) scale(${zoom})`;
      image.style.filter = this.brightness.value === "100" ? "" : `brightness(${this.brightness.value}%)`;
    }
    this.zoomOutput.textContent = `${Math.round(this.zoom * 100)}%`;
  }

  fromMiddle(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  wheel(event) {
    event.preventDefault();
    this.zoomBy(Math.exp(-event.deltaY / 400), ...this.fromMiddle(event));
  }

  down(event) {
    this.pointers.set(event.pointerId, this.fromMiddle(event));
    this.stage.setPointerCapture(event.pointerId);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.fromMiddle(event);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, now);
    if (other) {
      const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      this.zoomBy(distance(now) / distance(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else {
      this.panTo(this.x + now[0] - before[0], this.y + now[1] - before[1]);
    }
  }
}
