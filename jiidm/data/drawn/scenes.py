"""Draws landscapes from a seed, with the exact class of each pixel: data without a download, for tests and first runs.

A picture is painted from back to front: sky, mountains, hills, ground, then what stands on it. Each `paint` writes
colour and label together, so the two cannot disagree.
"""
import numpy as np

from jiidm.data.drawn.painting import MOODS, Canvas, line_noise, mix, noise, rgb
from jiidm.system.errors import InputError

SMALLEST = 16


def draw_landscape(seed: int | tuple[int, ...], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a landscape.

    Args:
        seed: a non-negative integer or a tuple of them.
        width, height: in pixels, at least 16.

    Returns:
        Photo, height x width x 3 uint8 RGB, and labels, height x width uint8 in 0..28.

    Raises:
        InputError: a side is under 16 pixels.
    """
    if min(width, height) < SMALLEST:
        raise InputError(f"a landscape of {width}x{height}: {SMALLEST}x{SMALLEST} or more was expected")
    rng = np.random.Generator(np.random.PCG64(seed))
    scene = _SCENES[int(rng.random() * len(_SCENES))]
    mood = "desert" if scene is _dunes and rng.random() < .6 else list(MOODS)[int(rng.random() * len(MOODS))]
    canvas = _Landscape(rng, width, height, MOODS[mood], stars=mood == "night")
    canvas.sky()
    scene(canvas)
    return canvas.finish(), canvas.labels


# ------------------------------------------------------------------------------------------------------------ things

class _Landscape(Canvas):
    """A canvas with the objects that stand on the ground. A `foot` is a depth: 0 at the horizon, 1 at the bottom."""

    def far(self, y):
        """How far away things are that stand at y: 1 at the horizon, 0 at the bottom, quadratic between."""
        near = min(1., max(0., (y - self.horizon) / (1 - self.horizon)))
        return (1 - near) * (1 - near)

    def blob(self, name, x, y, half_width, half_height, color, rough=.5, distance=0., grain=9.):
        """A rounded body with a ragged edge, lit from one side: a crown, a bush, a rock."""
        where, u, v = self.window(x, y, half_width * 1.25, half_height * 1.25)
        u, v = u * 1.25, v * 1.25
        x_cells = u * grain * .35 + self.between(0, 40)
        y_cells = v[:, 0] * grain * .35 * half_height / half_width + self.between(0, 40)
        leaf = noise(self.rng, x_cells, y_cells, 4, .68)
        cover = np.clip((1 - (u * u + v * v) + (leaf - .5) * 2.6 * rough) * 5, 0, 1)
        bright = .86 + .3 * (self.light_side * -u * .6 - v) + (leaf - .5) * 1.5
        self.paint(cover, name, self.lit(color, np.clip(bright, .3, 1.7), distance), where)

    def box(self, name, x, y, half_width, half_height, color, shade=None):
        """A plain rectangle around (x, y); `shade(u, v)` gives its brightness over -1..1 along each side."""
        where, u, v = self.window(x, y, half_width, half_height)
        bright = 1 if shade is None else shade(u, v)
        self.paint((np.abs(u) <= 1) & (np.abs(v) <= 1), name, self.lit(color, bright), where)

    def tree(self, x, y, size):
        """A tree with its foot at (x, y), `size` high: broad or a conifer."""
        distance = .35 * self.far(y)
        shade = self.between(.8, 1.2)
        leaves = rgb(self.mood.leaves) * shade * rgb((self.between(.85, 1.25), 1, self.between(.8, 1.1)))
        self.shadow(x, y, size * .34)
        if self.conifers:
            where, u, v = self.window(x, y - size / 2, size * .22, size / 2)
            down = (v + 1) / 2
            tiers = (down * self.count(5, 9)) % 1
            leaf = noise(self.rng, u * 5 + self.between(0, 30), v[:, 0] * 9 + self.between(0, 30), 3, .7)
            half = down * (.55 + .45 * tiers) + (leaf - .5) * .35
            cover = np.clip((half - np.abs(u)) * size * self.height * .22 + .5, 0, 1)
            bright = .72 + .35 * (leaf - .5) * 2 - .3 * self.light_side * u + .25 * (1 - tiers)
            self.paint(cover * (down < .97), "tree", self.lit(leaves * .82, np.clip(bright, .25, 1.5), distance), where)
            return
        self.box("tree", x, y - size * .2, max(size * .025, .7 / self.height), size * .2, (86, 66, 50),
                 lambda u, v: .9 - .4 * self.light_side * u)
        for _ in range(4):
            part = size * self.between(.2, .3)
            self.blob("tree", x + size * self.between(-.2, .2), y - size * self.between(.45, .78), part * 1.1, part,
                      leaves, .55, distance, 10)

    def shadow(self, x, y, half_width):
        """Darkens the ground under a thing; no label changes."""
        where, u, v = self.window(x - self.light_side * half_width * .4, y, half_width, half_width * .22)
        self.photo[where] *= (1 - .42 * np.clip(1.2 - u * u - v * v, 0, 1)).astype(np.float32)[..., None]

    def forest(self, count, low, high, size=(.3, .5), keep_clear=None):
        """Trees with feet at low..high of the way from the horizon to the bottom, the farthest first."""
        self.conifers = self.rng.random() < .4
        feet = sorted(low + (high - low) * self.rng.random() for _ in range(count))
        for foot in feet:
            y = self.horizon + foot * (1 - self.horizon)
            x = self.between(-.05, self.aspect + .05)
            if keep_clear is not None:
                side = 1 if self.rng.random() < .5 else -1
                centre = keep_clear[min(self.height - 1, int(y * self.height))]
                x = centre + side * (foot * .35 + self.between(.06, .7))
            self.tree(x, y, self.between(*size) * (.18 + foot))

    def scatter(self, name, count, low, high, size, color, rough=.35):
        """Rocks or bushes on the ground between the depths low and high (0 horizon, 1 bottom)."""
        for foot in sorted(low + (high - low) * self.rng.random() for _ in range(count)):
            y = self.horizon + foot * (1 - self.horizon)
            half = self.between(.5, 1) * size * (.15 + foot)
            x = self.between(0, self.aspect)
            self.shadow(x, y + half * .4, half * 1.2)
            tone = rgb(color) * self.between(.8, 1.15)
            self.blob(name, x, y, half * self.between(1, 1.6), half * .8, tone, rough, .3 * self.far(y), 7)

    def bushes(self, count=5):
        """Plants cut by the bottom edge."""
        for _ in range(count):
            half = self.between(.06, .13)
            leaves = rgb(self.mood.leaves) * self.between(.8, 1.4)
            self.blob("plant", self.between(0, self.aspect), 1.02, half * 1.6, half, leaves, .8, 0, 16)

    def house(self, name, x, y, size):
        """A house or a larger building with its foot at (x, y), roof and windows."""
        tall = 1. if name == "house" else self.between(1.1, 2.4)
        half, high = size * self.between(.5, .75), size * .5 * tall
        wall = self.pick((226, 214, 192), (198, 164, 132), (178, 96, 78), (214, 218, 220), (232, 222, 170))
        side = self.light_side
        self.shadow(x, y, half * 1.2)
        self.box(name, x, y - high, half, high, wall, lambda u, v: .95 - .18 * side * (u > .25) + .05 * v)
        where, u, v = self.window(x, y - 2 * high - size * .22, half * 1.14, size * .24)
        roof = (np.abs(u) < .55 + .45 * (v + 1) / 2) & (np.abs(v) <= 1)
        tile = .9 + .12 * ((v * 5) % 1 < .4) - .15 * side * u
        self.paint(roof, name, self.lit(self.pick((150, 70, 52), (96, 84, 86), (124, 88, 62)), tile), where)
        glass = (255, 214, 130) if self.stars else (72, 86, 104)
        columns, floors = 3 if name == "house" else self.count(3, 6), max(1, round(2 * high / (size * .42)))
        for floor in range(floors):
            for column in range(columns):
                u = (column + .5) / columns * 2 - 1
                self.box(name, x + u * half, y - 2 * high * (floor + .58) / floors, half / columns * .42,
                         high / floors * .42, np.array(glass) / (self.light if self.stars else 1))

    def boat(self, name, x, y, size):
        """A sailing boat, or with a funnel a ship, its water line at y."""
        hull = self.pick((150, 52, 44), (236, 232, 222), (52, 72, 110), (110, 74, 48))
        where, u, v = self.window(x, y - size * .08, size * .5, size * .1)
        self.paint(np.abs(u) < .95 - .22 * v, name, self.lit(hull, 1 - .125 * (v + 1)), where)
        if name == "ship":
            self.box(name, x - size * .1, y - size * .25, size * .2, size * .08, (232, 232, 228))
            self.box(name, x - size * .14, y - size * .38, size * .045, size * .07, (170, 62, 50))
            return
        where, u, v = self.window(x, y - size * .62, size * .32, size * .44)
        sail = (u > -.06) & (u < (v + 1) * .5) | (u <= -.1) & (u > -(v + .6) * .45)
        self.paint(sail, name, self.lit((244, 238, 224), 1 - .2 * np.abs(u)), where)

    def person(self, x, y, size):
        """A figure with its feet at (x, y), `size` high."""
        coat = self.pick((176, 48, 44), (48, 70, 130), (222, 182, 60), (60, 60, 64))
        self.shadow(x, y, size * .3)
        self.box("person", x, y - size * .22, size * .09, size * .22, (52, 52, 66))
        self.blob("person", x, y - size * .58, size * .16, size * .24, coat, .1)
        self.blob("person", x, y - size * .9, size * .085, size * .1, (214, 166, 136), .05)

    def rail(self, name, y, height, spacing, color, left=0., right=None):
        """A fence or a railing along the picture at y: posts and two bars."""
        right = self.aspect if right is None else right
        half_bar = max(height * .055, .6 / self.height)
        for bar in (.8, .42):
            self.box(name, (left + right) / 2, y - height * bar, (right - left) / 2, half_bar, color)
        for x in np.arange(left + spacing / 2, right, spacing):
            self.box(name, x, y - height / 2, max(height * .06, .7 / self.height), height / 2, color)

    def wall(self, y, height, left, right):
        """A wall of stones, its foot at y."""
        where, u, v = self.window((left + right) / 2, y - height / 2, (right - left) / 2, height / 2)
        rows = ((v + 1) * 2).astype(np.int64)
        joints = ((u * (right - left) / height * 1.6 + rows * .5) % 1 < .07) | ((v + 1) * 2 % 1 < .12)
        stone = noise(self.rng, u * 18 + 20, v[:, 0] * 4 + 9, 3)
        stone = (.7 + .6 * stone) * (1 - .35 * joints)
        self.paint(1, "wall", self.lit((170, 158, 142), stone), where)

    def bridge(self, y, left, right, height):
        """A bridge of three arches over the water, its deck `height` above y."""
        where, u, v = self.window((left + right) / 2, y - height / 2, (right - left) / 2, height / 2)
        arch = ((u + 1) * 1.5 % 1) * 2 - 1
        height = (1 - v) / 1.5
        opening = arch * arch / .72 + height * height < 1
        stone = .8 + .3 * noise(self.rng, u * 16 + 20, v[:, 0] * 5 + 9, 4, .6)
        self.paint(~opening & (v > -.95), "bridge", self.lit((172, 152, 130), stone), where)

    def pier(self, x, y, length, half_width):
        """Planks from the near shore at (x, y) out towards the horizon."""
        far = max(self.horizon + .04, y - length)
        part = np.clip((self.y - far) / (y - far), 0, 1)
        half = half_width * (.3 + .7 * part)
        centre = x + (self.aspect / 2 - x) * (1 - part) * .3
        cover = (np.abs(self.xs - centre) < half) & (self.y >= far) & (self.y <= y)
        planks = .82 + .25 * ((1 / (part + .3) * 14) % 1 < .8) * self.noise(30, 60, 2) * 1.3
        self.paint(cover, "pier", self.lit((134, 102, 74), planks))

    def waterfall(self, x, top, bottom, half_width):
        """White water falling over rock from `top` to `bottom`."""
        rock = line_noise(self.rng, self.xs * 3, 5, .6) * .12
        cliff = np.clip((half_width * self.between(5, 8) - np.abs(self.xs - x)) * 6, 0, 1)
        body = self.lit((112, 104, 98), np.clip(.95 + self.relief(7, 5) * 2, .35, 1.5), .12)
        skyline = top - .02 + rock + (1 - cliff) * (bottom - top + .1)
        self.paint(self.below(skyline), "rock", body)
        wobble = (noise(self.rng, [0.], self.ys * 7, 3)[:, 0] - .5)[:, None] * half_width
        half = half_width * (.7 + .5 * np.clip((self.y - top) / (bottom - top), 0, 1))
        cover = np.clip((half - np.abs(self.xs - x - wobble)) * self.height * .5, 0, 1)
        cover = cover * (self.y > skyline[min(self.width - 1, int(x * self.height))]) * (self.y < bottom + .05)
        strands = noise(self.rng, self.xs * 60, self.ys * 5, 3, .6)
        self.paint(cover, "waterfall", self.lit((226, 238, 244), .72 + .5 * strands))

    def balloon(self):
        """A hot-air balloon in the sky: "other"."""
        x, y, size = self.between(.1, .9) * self.aspect, self.between(.2, .6) * self.horizon, self.between(.04, .07)
        where, u, v = self.window(x, y, size, size)
        stripe = ((u / np.sqrt(np.maximum(1 - v * v, .02)) * 2.5 + 9) % 1 < .5)[..., None]
        color = np.where(stripe, rgb(self.pick((214, 70, 60), (60, 110, 170))), rgb((244, 222, 140)))
        bright = np.clip(1 - .3 * self.light_side * u - .15 * v, .4, 1.3)[..., None].astype(np.float32)
        self.paint(u * u + v * v < 1, "other", color * self.light * bright, where)
        self.box("other", x, y + size * 1.3, size * .16, size * .12, (120, 84, 54))


# ------------------------------------------------------------------------------------------------------------ scenes

def _seaside(canvas):
    """The sea with a beach, boats, rocks or a pier."""
    if canvas.rng.random() < .45:
        canvas.mountains()
    canvas.water("sea", canvas.horizon, 1.1, .55)
    if canvas.rng.random() < .6:
        canvas.boat(canvas.pick("boat", "ship", "boat"), canvas.between(.15, .85) * canvas.aspect,
                    canvas.horizon + canvas.between(.02, .1), canvas.between(.07, .14))
    if canvas.rng.random() < .75:
        beach = canvas.shore(.72, .92)
        canvas.paint(canvas.below(beach - .018), "sea", canvas.lit((236, 240, 238), .8 + .3 * canvas.noise(20, 40, 3)))
        canvas.ground("sand", beach)
        if canvas.rng.random() < .4:
            canvas.person(canvas.between(.2, .8) * canvas.aspect, .93, .11)
    if canvas.rng.random() < .6:
        canvas.scatter("rock", 9, .45, 1., .16, (104, 96, 92), .3)
    if canvas.rng.random() < .3:
        canvas.pier(canvas.between(.2, .8) * canvas.aspect, .92, .4, .07)


def _lakeside(canvas):
    """A lake with its bank, perhaps a boat or a pier."""
    canvas.background()
    if canvas.rng.random() < .25:
        canvas.waterfall(canvas.between(.25, .75) * canvas.aspect, canvas.horizon - .2, canvas.horizon + .02, .025)
    canvas.water(canvas.pick("lake", "lake", "water"), canvas.horizon + .02, 1.1, .8)
    if canvas.rng.random() < .4:
        canvas.boat("boat", canvas.between(.15, .85) * canvas.aspect, canvas.between(.62, .7), canvas.between(.08, .13))
    bank = canvas.shore(.76, .95)
    canvas.ground(canvas.pick("grass", "earth", "land", "grass"), bank)
    canvas.scatter("rock", canvas.count(2, 8), .55, .95, .1, (116, 108, 100), .3)
    if canvas.rng.random() < .4:
        canvas.pier(canvas.between(.2, .8) * canvas.aspect, .95, .32, .06)
    canvas.forest(canvas.count(1, 5), .88, .99, (.45, .65))
    canvas.bushes(canvas.count(2, 7))


def _riverside(canvas):
    """A river through meadows, perhaps with a bridge."""
    canvas.background()
    canvas.ground(canvas.pick("grass", "field", "grass"))
    centre, half, cover = canvas.course("river", canvas.between(.22, .34))
    ground, labels = canvas.photo.copy(), canvas.labels.copy()
    canvas.water("river", canvas.horizon, 1.1, .75)
    canvas.photo[:] = mix(ground, canvas.photo, cover.astype(np.float32))
    canvas.labels[:] = np.where(cover >= .5, canvas.labels, labels)
    if canvas.rng.random() < .4:
        row = int((canvas.horizon + .1) * canvas.height)
        canvas.bridge(canvas.horizon + .13, centre[row] - half[row] - .22, centre[row] + half[row] + .22, .1)
    canvas.scatter("rock", canvas.count(2, 9), .3, 1., .08, (122, 114, 106), .3)
    canvas.forest(canvas.count(4, 12), .08, .8, (.4, .6), centre)
    canvas.bushes(4)


def _meadow(canvas):
    """Grass and fields with a path, a house, trees."""
    canvas.background()
    canvas.ground("grass")
    if canvas.rng.random() < .6:
        top = canvas.shore(canvas.horizon + .05, canvas.horizon + .14)
        canvas.ground("field", top)
        canvas.ground("grass", top + canvas.between(.08, .16))
    centre = None
    if canvas.rng.random() < .7:
        centre, _ = canvas.way("path", canvas.between(.08, .14), (196, 166, 122))
    if canvas.rng.random() < .5:
        canvas.house("house", canvas.between(.15, .85) * canvas.aspect, canvas.horizon + .14, canvas.between(.12, .18))
    if canvas.rng.random() < .5:
        canvas.rail("fence", canvas.between(.72, .82), .07, .1, (142, 112, 82))
    canvas.forest(canvas.count(2, 9), .08, .7, (.45, .65), centre)
    if centre is not None and canvas.rng.random() < .4:
        canvas.person(centre[int(.8 * canvas.height)], .8, .12)
    if canvas.rng.random() < .3:
        canvas.balloon()
    canvas.scatter("plant", canvas.count(3, 12), .4, 1., .09, canvas.mood.leaves, .7)
    canvas.bushes(3)


def _roadside(canvas):
    """A road between trees."""
    canvas.background()
    canvas.ground(canvas.pick("grass", "land", "field", "grass"))
    centre, half = canvas.way("road", canvas.between(.3, .5), (112, 110, 114))
    canvas.forest(canvas.count(3, 10), .05, .7, (.4, .65), centre)
    if canvas.rng.random() < .5:
        row = int(.9 * canvas.height)
        canvas.rail("railing", .93, .1, .07, (196, 198, 202), centre[row] + half[row] * 1.1, canvas.aspect)
    canvas.scatter("plant", 6, .3, .9, .06, canvas.mood.leaves, .7)


def _town(canvas):
    """Houses and buildings behind a wall or a road."""
    canvas.background()
    canvas.ground("grass")
    for x in np.arange(canvas.between(-.05, .1), canvas.aspect, .2):
        if canvas.rng.random() < .75:
            canvas.house(canvas.pick("building", "house", "building"), x, canvas.horizon + canvas.between(.04, .09),
                         canvas.between(.11, .17))
    canvas.forest(canvas.count(3, 8), .1, .3, (.4, .6))
    if canvas.rng.random() < .5:
        canvas.wall(canvas.horizon + .24, .07, canvas.between(0, .3), canvas.aspect)
    if canvas.rng.random() < .6:
        canvas.way(canvas.pick("road", "path"), canvas.between(.14, .3), (128, 122, 118))
    canvas.bushes(5)


def _dunes(canvas):
    """Dunes or land with rocks and dry plants."""
    if canvas.rng.random() < .6:
        canvas.mountains()
    name = canvas.pick("sand", "sand", "land")
    for index in range(4):
        swell = line_noise(canvas.rng, canvas.xs * (1.7 - .3 * index) + canvas.between(0, 9), 2, .25)
        top = canvas.horizon + .02 + .16 * index - (.06 + .07 * index) * swell
        canvas.ground(name, top)
        crest = canvas.below(top) / (1 + 14 * np.maximum(canvas.y - top, 0))
        canvas.photo *= (.84 + .16 * (1 - canvas.below(top)) + .3 * crest).astype(np.float32)[..., None]
    canvas.scatter("rock", canvas.count(2, 10), .1, 1., .14, (150, 108, 84), .3)
    canvas.scatter("plant", canvas.count(2, 9), .2, 1., .06, canvas.mood.leaves, .9)


def _highland(canvas):
    """Mountains and rocks, perhaps with a waterfall."""
    canvas.mountains()
    canvas.hills(.9)
    canvas.ground(canvas.pick("earth", "land", "grass"))
    if canvas.rng.random() < .6:
        canvas.waterfall(canvas.between(.2, .8) * canvas.aspect, canvas.horizon - .16, canvas.horizon + .16, .03)
        canvas.water("water", canvas.horizon + .16, canvas.shore(.72, .8), .5)
    canvas.scatter("rock", 14, .1, 1., .15, (120, 112, 106), .3)
    canvas.forest(canvas.count(2, 9), .15, .75, (.4, .55))
    canvas.scatter("plant", 8, .4, 1., .07, canvas.mood.leaves, .7)


_SCENES = (_seaside, _seaside, _lakeside, _lakeside, _riverside, _meadow, _meadow, _roadside, _town, _dunes, _highland)
