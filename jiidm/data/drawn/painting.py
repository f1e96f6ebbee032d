"""A canvas for drawn landscapes: noise, light, and the large areas of a picture (sky, relief, ground, water).

One seed gives one picture on every machine: the arithmetic is only what IEEE 754 defines to the last bit (+ - * / sqrt,
integers), without sin, exp or power.
"""
from typing import NamedTuple

import numpy as np

from jiidm.data.labels import CLASSES

_INDEX = {name: index for index, name in enumerate(CLASSES)}
_LATTICE = 64


class Mood(NamedTuple):
    """The light and the season: colours are RGB 0..255, `light` multiplies every colour of the ground."""

    zenith: tuple
    horizon: tuple
    haze: tuple
    light: tuple
    cloud: tuple
    grass: tuple
    leaves: tuple
    disc: tuple | None  # sun or moon


MOODS = {
    "day": Mood((58, 116, 190), (192, 217, 236), (182, 204, 226), (1.0, 1.0, .96), (250, 250, 248),
                 (104, 148, 58), (52, 98, 44), None),
    "summer": Mood((44, 104, 196), (206, 226, 234), (176, 206, 218), (1.06, 1.03, .92), (255, 253, 246),
                    (132, 160, 58), (62, 112, 40), (255, 250, 225)),
    "sunset": Mood((66, 66, 128), (252, 168, 92), (232, 152, 116), (.98, .70, .58), (255, 158, 112),
                    (106, 112, 52), (58, 74, 42), (255, 236, 170)),
    "dusk": Mood((40, 48, 98), (226, 140, 138), (150, 116, 142), (.74, .66, .78), (214, 136, 146),
                  (92, 112, 60), (48, 72, 48), None),
    "overcast": Mood((132, 144, 156), (206, 212, 214), (194, 201, 206), (.78, .82, .84), (228, 231, 233),
                      (96, 132, 68), (50, 86, 52), None),
    "autumn": Mood((92, 142, 198), (232, 226, 206), (212, 208, 200), (1.02, .95, .84), (252, 246, 236),
                    (154, 142, 60), (186, 98, 34), None),
    "mist": Mood((158, 178, 196), (244, 226, 206), (226, 216, 208), (.92, .90, .88), (250, 240, 230),
                  (118, 144, 84), (68, 104, 72), (255, 246, 226)),
    "night": Mood((8, 13, 38), (44, 62, 104), (34, 46, 80), (.22, .27, .44), (52, 64, 98),
                   (88, 120, 64), (52, 84, 52), (238, 240, 228)),
    "desert": Mood((76, 140, 200), (244, 222, 184), (230, 202, 170), (1.05, .97, .86), (252, 244, 232),
                    (170, 156, 84), (104, 116, 58), (255, 248, 220)),
}


# ------------------------------------------------------------------------------------------------------- arithmetic

def noise(rng, xs, ys, octaves=5, gain=.5):
    """Returns smooth noise at the lattice coordinates xs (W), ys (H): H x W float32 in 0..1, mean about 0.5."""
    total, weight, amplitude = 0, 0, 1.
    for octave in range(octaves):
        lattice = rng.random((_LATTICE, _LATTICE), np.float32)
        (x0, x1, fx), (y0, y1, fy) = (_cells(np.asarray(axis, np.float64) * 2 ** octave) for axis in (xs, ys))
        rows = lattice[:, x0] + (lattice[:, x1] - lattice[:, x0]) * fx
        total = total + (rows[y0] + (rows[y1] - rows[y0]) * fy[:, None]) * np.float32(amplitude)
        weight, amplitude = weight + amplitude, amplitude * gain
    return total / np.float32(weight)


def _cells(axis):
    """The lattice indices left and right of each coordinate, and the smooth weight of the right one."""
    low = np.floor(axis)
    part = axis - low
    low = low.astype(np.int64)
    return low % _LATTICE, (low + 1) % _LATTICE, (part * part * (3 - 2 * part)).astype(np.float32)


def line_noise(rng, xs, octaves=5, gain=.5):
    """Returns smooth noise along xs (W), float64 in 0..1."""
    return noise(rng, xs, [0.], octaves, gain)[0].astype(np.float64)


def smooth_step(low, high, values):
    """Returns 0 below `low`, 1 above `high`, and a smooth step between."""
    part = np.clip((values - low) / (high - low), 0, 1)
    return part * part * (3 - 2 * part)


def mix(first, second, weight):
    """Returns first * (1 - weight) + second * weight, over colours; `weight` has no colour axis."""
    weight = np.asarray(weight)[..., None]
    return first + (second - first) * weight


def shifted(field, down, right):
    """Returns `field` (H x W) shifted by whole pixels, its border repeated."""
    rows, columns = (np.arange(length) for length in field.shape)
    return field[np.clip(rows - down, 0, len(rows) - 1)[:, None], np.clip(columns - right, 0, len(columns) - 1)]


def rgb(color):
    """Returns a colour (3 numbers, 0..255) as float32."""
    return np.array(color, np.float32)


# ------------------------------------------------------------------------------------------------------------ canvas

class Canvas:
    """A picture in progress. Coordinates are in heights of the picture: x 0..width/height, y 0..1 from the top."""

    def __init__(self, rng, width, height, mood, stars):
        self.rng, self.mood, self.stars = rng, mood, stars
        self.width, self.height, self.aspect = width, height, width / height
        self.xs = (np.arange(width) + .5) / height
        self.ys = (np.arange(height) + .5) / height
        self.y = self.ys[:, None]
        self.photo = np.zeros((height, width, 3), np.float32)
        self.labels = np.full((height, width), _INDEX["sky"], np.uint8)
        self.horizon = .36 + .2 * rng.random()
        self.conifers = False
        self.light_side = 1 if rng.random() < .5 else -1
        self.light = rgb(mood.light)
        self.haze = rgb(mood.haze)

    def pick(self, *choices):
        """One of the choices, at random."""
        return choices[self.count(0, len(choices))]

    def count(self, low, high):
        """A random integer, low..high-1; numpy may change the stream of `rng.integers`."""
        return low + int(self.rng.random() * (high - low))

    def between(self, low, high):
        """A random number, low..high."""
        return low + (high - low) * self.rng.random()

    def noise(self, x_scale, y_scale=None, octaves=5, gain=.5):
        """Noise over the picture, `x_scale` and `y_scale` lattice cells in one height."""
        return noise(self.rng, self.xs * x_scale, self.ys * (y_scale or x_scale), octaves, gain)

    def ground_noise(self, scale, octaves=5, gain=.6, flat=1.):
        """Noise that lies on the ground: finer and flatter towards the horizon, `flat` times more all over."""
        depth = 1 / (np.maximum(self.ys - self.horizon, 0) + .06)
        return noise(self.rng, self.xs * scale, (depth * .12 + self.ys * 1.4) * scale * flat, octaves, gain)

    def relief(self, scale, octaves=5):
        """Light on a rough surface, about -1..1: the slope of a noise towards the light."""
        field = self.noise(scale, octaves=octaves, gain=.62)
        step = max(1, self.height // 96)
        return (field - shifted(field, step, self.light_side * step)) * np.float32(4.5)

    def lit(self, color, brightness=1, distance=0):
        """A colour of the ground in the mood's light, faded to haze by `distance` 0..1."""
        color = rgb(color) * self.light * np.asarray(brightness, np.float32)[..., None]
        return mix(color, self.haze, np.float32(distance))

    def paint(self, cover, name, color, where=(slice(None), slice(None))):
        """Paints `color` with the opacity `cover` (0..1); the label changes where it is at least half."""
        cover = np.broadcast_to(np.asarray(cover, np.float32), self.labels[where].shape)
        self.photo[where] = mix(self.photo[where], color, cover)
        self.labels[where][cover >= .5] = _INDEX[name]

    def below(self, skyline):
        """Cover of what lies below a skyline y(x) (W), its edge one pixel soft."""
        return np.clip((self.y - skyline) * self.height + .5, 0, 1)

    def window(self, x, y, half_width, half_height):
        """The slices of a box around (x, y), and the coordinates in it, -1..1 along each side."""
        left, right = (int(np.clip((x + side * half_width) * self.height, 0, self.width)) for side in (-1, 1))
        top, bottom = (int(np.clip((y + side * half_height) * self.height, 0, self.height)) for side in (-1, 1))
        right, bottom = min(right + 1, self.width), min(bottom + 1, self.height)
        u = (self.xs[left:right] - x) / half_width
        v = ((self.ys[top:bottom] - y) / half_height)[:, None]
        return (slice(top, bottom), slice(left, right)), u, v

    def finish(self):
        """Returns the picture, H x W x 3 uint8, with the grain of a canvas and a slight vignette."""
        tooth = self.noise(90, 90, 2, .7) + self.noise(22, 40, 2) - 1
        x = self.xs / self.aspect - .5
        vignette = 1.03 - .24 * (x * x + (self.y - .5) * (self.y - .5))
        photo = self.photo * vignette.astype(np.float32)[..., None] + tooth[..., None] * np.float32(9)
        return (np.clip(photo, 0, 255) + np.float32(.5)).astype(np.uint8)

    # ----------------------------------------------------------------------------------------------- backgrounds

    def sky(self):
        """The sky over the whole picture: gradient, stars, sun or moon, clouds."""
        mood = self.mood
        height = np.clip(self.y / (self.horizon + .05), 0, 1)
        sky = mix(rgb(mood.zenith), rgb(mood.horizon), height * height * .55 + height * .45)
        self.photo[:] = sky
        if self.stars:
            twinkle = self.rng.random((self.height, self.width), np.float32)
            self.photo += (smooth_step(.997, 1, twinkle) * (1 - height))[..., None] * np.float32(190)
        if mood.disc:
            x, y = self.between(.15, .85) * self.aspect, self.between(.1, .8) * self.horizon
            square = (self.xs - x) * (self.xs - x) + (self.y - y) * (self.y - y)
            glow = 1 / (1 + square * (60 if self.stars else 22))
            self.photo[:] = mix(self.photo, rgb(mood.disc), (glow * (.35 if self.stars else .75)).astype(np.float32))
            disc = np.clip((self.between(.022, .04) - np.sqrt(square)) * self.height, 0, 1)
            self.photo[:] = mix(self.photo, rgb(mood.disc), disc.astype(np.float32))
        self.clouds()

    def clouds(self):
        """Clouds over the sky, thinner towards the horizon, lit from the side of the light."""
        amount = self.between(.36, .62)
        x_scale = self.between(1.6, 3.2)
        field = self.noise(x_scale, x_scale * self.between(2.2, 4), 6, .52)
        above = shifted(field, max(1, self.height // 40), self.light_side * max(1, self.height // 60))
        cover = smooth_step(1 - amount, 1.22 - amount, field) * (1 - .55 * smooth_step(0, 1, self.y / self.horizon))
        shade = np.clip((field - above) * 2.6 + .62, .25, 1)
        cloud = mix(mix(rgb(self.mood.zenith), rgb(self.mood.horizon), .55), rgb(self.mood.cloud), shade)
        self.photo[:] = mix(self.photo, cloud, (cover * .92).astype(np.float32))

    def ridge(self, name, color, base, height, distance, roughness=.5, scale=2.2):
        """A mountain chain or a hill: its skyline rises `height` above `base`, and it reaches to the bottom."""
        line = line_noise(self.rng, self.xs * scale, 7, roughness)
        if name == "mountain":
            peaks = 1 - np.abs(2 * line_noise(self.rng, self.xs * scale * .8, 6, roughness) - 1)
            line = .35 * line + .75 * peaks * peaks
        skyline = base - height * line
        relief = self.relief(5 if name == "mountain" else 3, 6 if name == "mountain" else 4)
        fade = np.clip((self.y - skyline) / (height + .02), 0, 1)
        tint = self.noise(4, 8, 4)
        body = mix(rgb(color), rgb(self.mood.leaves), smooth_step(.5, .75, tint) * .55 * fade)
        bright = 1.02 + relief * (1.5 if name == "mountain" else .6)
        body = body * self.light * np.clip(bright, .35, 1.5).astype(np.float32)[..., None]
        body = mix(body, self.haze, np.clip(distance + .28 * fade * distance, 0, 1).astype(np.float32))
        self.paint(self.below(skyline), name, body)

    def mountains(self):
        """One to three chains, the nearest darkest."""
        count = self.count(1, 4)
        tone = self.pick((92, 96, 112), (112, 98, 88), (84, 96, 88), (124, 104, 92))
        for index in range(count):
            near = (index + 1) / count
            self.ridge("mountain", tone, self.horizon + .03, self.between(.3, .44) * (1.15 - .6 * near),
                       .72 - .5 * near, self.between(.46, .56), self.between(1.1, 2.2) + near)

    def hills(self, chance=.7):
        """Up to two hills, each with the probability `chance`."""
        for index in range(2):
            if self.rng.random() < chance:
                color = self.pick(self.mood.grass, self.mood.leaves)
                self.ridge("hill", color, self.horizon + .03, self.between(.05, .12) / (1 + index), .42 - .2 * index,
                           .34, self.between(.7, 1.5))

    def background(self):
        """What may stand behind the ground: mountains, hills, a forest."""
        if self.rng.random() < .8:
            self.mountains()
        self.hills(.55)
        if self.rng.random() < .6:
            self.far_forest()

    def far_forest(self):
        """A strip of forest along the horizon."""
        line = line_noise(self.rng, self.xs * 2, 3) * .05 + line_noise(self.rng, self.xs * 34, 4, .7) * .045
        skyline = self.horizon + .015 - line
        leaves = np.clip(1 + self.relief(22, 4) * 1.3, .4, 1.6)
        self.paint(self.below(skyline), "tree", self.lit(self.mood.leaves, leaves, .28))

    # ---------------------------------------------------------------------------------------------------- ground

    def ground(self, name, top=None, color=None):
        """Grass, field, sand, earth or land from the line `top` (W, default the horizon) to the bottom."""
        colors = {"grass": self.mood.grass, "field": (196, 172, 84), "sand": (222, 196, 146), "earth": (122, 88, 60),
                  "land": (160, 132, 96), "plant": self.mood.leaves}
        top = np.full(self.width, self.horizon) if top is None else top
        color = rgb(color or colors[name])
        grows = name in ("grass", "plant")
        patches, fine = self.ground_noise(3., flat=1.6), self.ground_noise(26., 3, .75, 1. if grows else 2.2)
        near = np.clip((self.y - self.horizon) / (1 - self.horizon), 0, 1)
        bright = .72 + .36 * patches + .5 * (fine - .5) * (.4 + near) + .12 * (1 - near)
        if grows:
            blades = self.noise(70, 16, 3, .7) - .5
            bright = bright + blades * .7 * near
        hue = mix(color, color * rgb((1.22, 1.04, .72)), smooth_step(.42, .7, self.ground_noise(2.2, 4, flat=1.8)))
        body = hue * self.light * np.clip(bright, .3, 1.4).astype(np.float32)[..., None]
        distance = .34 * (1 - near) * (1 - near)
        self.paint(self.below(top), name, mix(body, self.haze, distance.astype(np.float32)))

    def water(self, name, top, bottom, calm=.7):
        """Water between the lines top(x) and bottom(x) (W): the mirrored picture, its ripples and the sky's shine."""
        shore = np.broadcast_to(np.asarray(top, np.float64), (self.width,))
        line = float(shore.min())
        ripple = self.ground_noise(5., 4, .6) - .5
        near = np.clip((self.y - line) / (1 - line), 0, 1)
        mirrored = (2 * line - self.y + ripple * (.05 + .2 * near)) * self.height
        rows = np.clip(mirrored, 0, max(0, int(line * self.height) - 1)).astype(np.int64)
        image = self.photo[rows, np.arange(self.width)]
        deep = rgb({"sea": (24, 84, 122), "river": (62, 112, 122), "lake": (36, 92, 116)}.get(name, (50, 104, 132)))
        body = mix(deep * self.light, image, np.float32(calm) * (1 - .5 * near).astype(np.float32))
        crest = noise(self.rng, self.xs * 7, 2 / (np.maximum(self.ys - line, 0) + .05) + self.ys * 40, 3, .6)
        shine = smooth_step(.6, .82, crest) * (.22 + .3 * (1 - calm))
        body = mix(body, rgb(self.mood.horizon), shine.astype(np.float32))
        body = body * (1 + (crest - .5) * .25)[..., None]
        cover = self.below(shore) * (1 - self.below(np.broadcast_to(bottom, (self.width,))))
        self.paint(cover, name, body)

    def shore(self, low, high):
        """A wavy line (W) between the heights low and high."""
        return low + (high - low) * line_noise(self.rng, self.xs * self.between(.8, 1.6), 5, .42)

    def course(self, name, width):
        """Where a road, a path or a river runs, winding and narrowing from the bottom to the horizon.

        Returns its centre (H) and half its width (H) in heights of the picture, and its cover (H x W).
        """
        y = np.clip((self.ys - self.horizon) / (1 - self.horizon), 0, 1)
        bend = noise(self.rng, [0.], np.sqrt(y) * 2.2 + self.between(0, 9), 2)[:, 0].astype(np.float64) - .5
        start, end = self.between(.25, .75) * self.aspect, self.between(.3, .7) * self.aspect
        swing = self.between(.5, 1.1) * (1 if name != "road" else .6)
        centre = end + (start - end) * y + bend * swing * np.sqrt(y) * (1.1 - .5 * y)
        half = .004 + width * (.15 * y + .85 * y * y)
        edge = (noise(self.rng, self.xs * 12, self.ys * 24, 3) - .5) * half[:, None] * (.1 if name == "road" else .5)
        cover = np.clip((half[:, None] + edge - np.abs(self.xs - centre[:, None])) * self.height + .5, 0, 1)
        return centre, half, cover * (self.y > self.horizon + .004)

    def way(self, name, width, surface):
        """A road with its middle line or a path, of the colour `surface`; returns its centre and half width (H)."""
        centre, half, cover = self.course(name, width)
        across = (self.xs - centre[:, None]) / half[:, None]
        near = np.clip((self.y - self.horizon) / (1 - self.horizon), 0, 1)
        bright = .8 + .3 * self.ground_noise(20., 4, .7) - .12 * np.minimum(across * across, 1)
        self.paint(cover, name, self.lit(surface, bright, .3 * (1 - near) * (1 - near)))
        if name == "road":
            dashes = (3 / (near + .12)) % 1 < .55
            mark = np.clip(1.6 - np.abs(across) * 34, 0, 1) * dashes * cover * .8
            self.photo[:] = mix(self.photo, self.lit((236, 232, 214)), mark.astype(np.float32))
        return centre, half
