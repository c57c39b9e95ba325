"""Draws floors.svg: the rooms of research/, each of which imports only rooms below it.

python docs/images/floors.py
"""

from pathlib import Path

# from the roof to the ground: (what a floor is for, its rooms)
FLOORS = (
    ("what you type", ("cli",)),
    ("each command", ("commands", "train")),
    ("which way to take", ("decisions",)),
    ("many runs, and speed", ("studies", "phases", "benchmarks")),
    ("in, out and onto chips", ("interop", "preflight", "launch")),
    ("use of a trained model", ("adapters", "evaluation", "generation", "retrieval", "serving")),
    ("work on a whole run", ("training", "inspection", "preparation")),
    ("what stays on disk", ("checkpoints",)),
    ("one step, one run", ("step", "experiment")),
    ("text becomes batches", ("objectives", "data")),
    ("what trains, and how", ("methods", "losses", "optim")),
    ("the model and its words", ("models", "text")),
    ("small ideas", ("batch", "tree", "sharding", "reports")),
    ("machine and config", ("runtime", "config")),
)
WIDTH, HEIGHT, GAP, LABEL = 880, 34, 8, 210
COLORS = ("#dbe9f6", "#e3f1dc")


def draw() -> str:
    """The picture as SVG: opaque boxes with dark text, so that it reads on any background."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 0 {WIDTH + 2} '
        f'{len(FLOORS) * (HEIGHT + GAP) + GAP}" font-family="sans-serif" font-size="14">',
        "<title>The rooms of research/: a room imports only rooms below it</title>",
    ]
    for number, (purpose, rooms) in enumerate(FLOORS):
        y = GAP + number * (HEIGHT + GAP)
        middle = y + HEIGHT / 2 + 5
        lines += [
            f'<rect x="0" y="{y}" width="{LABEL - GAP}" height="{HEIGHT}" rx="6" fill="#eeeeee"/>',
            f'<text x="12" y="{middle}" fill="#444444">{purpose}</text>',
        ]
        width = (WIDTH - LABEL + GAP) / len(rooms)
        for place, room in enumerate(rooms):
            x = LABEL + place * width
            lines += [
                f'<rect x="{x:.1f}" y="{y}" width="{width - GAP:.1f}" height="{HEIGHT}" '
                f'rx="6" fill="{COLORS[number % 2]}" stroke="#8899aa"/>',
                f'<text x="{x + (width - GAP) / 2:.1f}" y="{middle}" text-anchor="middle" '
                f'fill="#111111">{room}</text>',
            ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
