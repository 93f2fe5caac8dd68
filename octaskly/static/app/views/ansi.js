/**
 * The output of a program as lines of styled text. It supports colours and styles (SGR),
 * carriage returns and tabs, and drops all other control sequences. It returns values; the
 * caller puts the texts into text nodes.
 *
 *     const out = new Output(20_000);
 *     const pen = out.pen("stdout");
 *     pen.write("\x1b[31mred\x1b[0m\n");
 *     out.lines[0].spans  // [{ text: "red", style: { fg: 1 } }]
 */

const LINE_CHARS_MAX = 20_000; //: longer lines are split
const SPANS_MAX = 1000; //: of one line; the rest has the last style
const HELD_CHARS_MAX = 4096; //: of an incomplete sequence

// CSI; OSC, DCS and their like up to their end; two characters; other controls, and those
// that turn writing round.
const SEQUENCE = /\x1b\[([0-9;:<=>?]*)[ -/]*([@-~])|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-Z\\^-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
const UNENDED = /\x1b(?:\[[0-9;:<=>? -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)$/;

/** @typedef {{fg?: number|string, bg?: number|string, bold?: true, dim?: true, italic?: true, underline?: true, strike?: true, inverse?: true}} Style */
/** @typedef {{stream: string, spans: {text: string, style: Style}[], chars: number, number: number}} Line */

/** The last `linesMax` lines of several streams, in the order of their starts. */
export class Output {
  /** @type {Line[]} */
  lines = [];
  dropped = 0; //: number of lines that were dropped
  #count = 0;

  constructor(linesMax) {
    this.linesMax = linesMax;
  }

  pen(stream) {
    return new Pen(this, stream);
  }

  /** Adds a line of this page, for example about a new attempt. */
  note(text) {
    this.add({ stream: "note", spans: [{ text, style: {} }], chars: text.length });
  }

  add(line) {
    if (line.stream !== "note") line.number = this.#count += 1;
    this.lines.push(line);
    const slack = this.linesMax >> 3; // Dropped many at a time, which costs less.
    if (this.lines.length >= this.linesMax + slack) {
      const many = this.lines.length - this.linesMax;
      this.lines.splice(0, many);
      this.dropped += many;
    }
  }
}

/** Writes one stream; its pieces may be cut anywhere. */
class Pen {
  #output;
  #stream;
  #line = null;
  #style = {};
  #held = "";
  #isReturned = false;

  constructor(output, stream) {
    this.#output = output;
    this.#stream = stream;
  }

  write(piece) {
    let text = this.#held + piece;
    const cut = UNENDED.exec(text);
    this.#held = cut !== null && cut[0].length < HELD_CHARS_MAX ? cut[0] : "";
    if (cut !== null) text = text.slice(0, cut.index);
    let from = 0;
    for (const match of text.matchAll(SEQUENCE)) {
      this.#plain(text.slice(from, match.index));
      if (match[2] === "m") this.#style = styled(this.#style, match[1]);
      else if (match[2] === "K" && match[1] !== "1" && this.#isReturned) this.#wipe();
      from = match.index + match[0].length;
    }
    this.#plain(text.slice(from));
  }

  /** Ends the open line, if any. */
  end() {
    this.#line = null;
    this.#isReturned = false;
  }

  #plain(text) {
    for (const part of text.match(/\r|\n|[^\r\n]+/g) ?? []) {
      if (part === "\n") {
        this.#line ?? this.#open();
        this.end();
      } else if (part === "\r") {
        this.#isReturned = true;
      } else {
        this.#put(part);
      }
    }
  }

  #put(text) {
    if (this.#isReturned) this.#wipe(); // Progress bars overwrite their line.
    while (text !== "") {
      if (this.#line === null || this.#line.chars >= LINE_CHARS_MAX) this.#open();
      const line = this.#line;
      const part = text.slice(0, LINE_CHARS_MAX - line.chars);
      const last = line.spans.at(-1);
      if (last && (last.style === this.#style || line.spans.length >= SPANS_MAX)) last.text += part;
      else line.spans.push({ text: part, style: this.#style });
      line.chars += part.length;
      text = text.slice(part.length);
    }
  }

  #open() {
    this.#line = { stream: this.#stream, spans: [], chars: 0 };
    this.#output.add(this.#line);
  }

  #wipe() {
    this.#isReturned = false;
    if (this.#line !== null) {
      this.#line.spans = [];
      this.#line.chars = 0;
    }
  }
}

const ON = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const OFF = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"], 39: ["fg"], 49: ["bg"] };

/** The style after an SGR sequence with these parameters. */
export function styled(before, parameters) {
  const codes = parameters.split(/[;:]/).slice(0, 64).map(Number);
  let style = { ...before };
  for (let at = 0; at < codes.length; at += 1) {
    const code = codes[at];
    if (code === 0) style = {};
    else if (ON[code]) style[ON[code]] = true;
    else if (OFF[code]) for (const name of OFF[code]) delete style[name];
    else if (code >= 30 && code <= 37) style.fg = code - 30;
    else if (code >= 40 && code <= 47) style.bg = code - 40;
    else if (code >= 90 && code <= 97) style.fg = code - 82;
    else if (code >= 100 && code <= 107) style.bg = code - 92;
    else if (code === 38 || code === 48) {
      const [colour, used] = extended(codes.slice(at + 1));
      if (colour !== null) style[code === 38 ? "fg" : "bg"] = colour;
      at += used;
    }
  }
  return style;
}

/** A colour of 256, or any: the first 16 as a number, others as CSS has them. */
function extended([kind, ...rest]) {
  if (kind === 5) return [palette(rest[0]), 2];
  if (kind !== 2) return [null, 1];
  const rgb = rest.slice(0, 3).map((part) => Math.min(255, part | 0));
  return [rgb.length === 3 ? `rgb(${rgb.join(" ")})` : null, 4];
}

function palette(n) {
  if (!(n >= 0 && n <= 255)) return null;
  if (n < 16) return n;
  if (n >= 232) return `rgb(${Array(3).fill(8 + (n - 232) * 10).join(" ")})`;
  const part = (size) => [0, 95, 135, 175, 215, 255][Math.floor((n - 16) / size) % 6];
  return `rgb(${part(36)} ${part(6)} ${part(1)})`;
}
