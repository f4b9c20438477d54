"""Invented words and values: names, colours, what changes in an entity and to what."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

FIRST_NAMES = (
    "Ada", "Amir", "Bea", "Bruno", "Carla", "Chen", "Dana", "Deniz", "Elif", "Emil",
    "Farah", "Felix", "Gita", "Goran", "Hana", "Hugo", "Ines", "Ivo", "Jana", "Jonas",
    "Kira", "Kofi", "Lena", "Luca", "Maja", "Milan", "Nora", "Noel", "Olga", "Omar",
    "Paula", "Pavel", "Rosa", "Ravi", "Sara", "Sven", "Tara", "Theo", "Uma", "Vera",
    "Viktor", "Wanda", "Yara", "Yusuf", "Zoe",
)  # fmt: skip
LAST_NAMES = (
    "Adler", "Baum", "Castell", "Dorn", "Eklund", "Falk", "Garten", "Holm", "Ilves",
    "Jansen", "Kestrel", "Linde", "Moor", "Nyberg", "Okoro", "Petri", "Quill", "Roos",
    "Salo", "Tanaka", "Ulmer", "Vance", "Winter", "Xanthos", "Ypsil", "Zander",
)  # fmt: skip
COLORS = (
    "black", "white", "navy", "rust", "sage", "ivory", "plum", "teal", "sand", "coral",
)  # fmt: skip
MATERIALS = ("cotton", "linen", "silk", "wool")
PATTERNS = ("stripes", "dots", "checks", "florals", "plain")
GARMENTS = {
    "top": ("Shirt", "Blouse", "Sweater"),
    "bottom": ("Trousers", "Skirt", "Jeans"),
    "dress": ("Dress", "Gown"),
    "outerwear": ("Coat", "Jacket", "Parka"),
    "accessory": ("Scarf", "Belt"),
    "other": ("Lining", "Trim"),
}
MOODS = ("Quiet", "Bold", "Airy", "Sharp", "Soft", "Raw", "Bright", "Deep")
OCCASIONS = ("Monday", "Gala", "Harbour", "Studio", "Garden", "Market", "Runway", "Weekend")
TAGS = ("casual", "evening", "featured", "capsule", "sample", "summer", "winter", "basic")
HAIR = ("short", "long", "curly", "braided", "shaved")
HAIR_COLORS = ("black", "brown", "blond", "red", "grey")

USER_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 Safari/605.1.15",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/138.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
    "FashionWallet/4.2 (Android 15)",
    "FashionWallet/4.1 (iOS 18.5)",
)
SCRIPT_AGENT = "python-requests/2.32"
JOB_AGENT = "fashion-wallet-jobs/1.0"

# Addresses that RFC 5737 keeps for documentation, so none of them is anybody's.
HOME_ADDRESSES = tuple(
    f"{net}.{host}" for net in ("192.0.2", "198.51.100") for host in range(1, 255)
)
OTHER_ADDRESSES = tuple(f"203.0.113.{host}" for host in range(1, 200))
NIGHT_ADDRESS = "203.0.113.213"
SWEEP_ADDRESS = "203.0.113.240"


@dataclass(frozen=True)
class Field:
    """A field that updates change, and the values it goes through in a circle."""

    name: str
    values: tuple[Any, ...]

    def changes(self) -> tuple[str, ...]:
        """One JSON object for each value, as an audit row holds it."""
        return tuple(json.dumps({self.name: value}) for value in self.values)


USER_FIELDS = (
    Field("email_verified", (False, True)),
    Field("last_name", tuple(LAST_NAMES)),
    Field("role", ("user", "designer")),
)
AVATAR_FIELDS = (
    Field("name", ("Everyday", "Studio", "Evening", "Travel", "Fitting")),
    Field(
        "customization",
        tuple(
            {"hairStyle": style, "hairColor": color}
            for style, color in itertools.product(HAIR, HAIR_COLORS)
        ),
    ),
)
ITEM_FIELDS = (
    Field("price", (0, 450, 990, 1290, 1490, 1990, 2490, 4900)),
    Field("is_active", (True, False)),
    Field(
        "properties",
        tuple(
            {
                "color": color,
                "material": MATERIALS[n % len(MATERIALS)],
                "patternType": pattern,
                "tags": [TAGS[n % len(TAGS)]],
            }
            for n, (color, pattern) in enumerate(itertools.product(COLORS, PATTERNS))
        ),
    ),
)
DESIGN_FIELDS = (
    Field("status", ("draft", "published", "archived")),
    Field("name", tuple(f"{mood} {place}" for mood, place in itertools.product(MOODS, OCCASIONS))),
    Field(
        "metadata",
        tuple(
            {"tags": list(pair), "canvasSize": {"width": 1200, "height": 1600}}
            for pair in itertools.combinations(TAGS, 2)
        ),
    ),
)


def texts(values: Sequence[str], codes: Any) -> pa.Array:
    """``values[code]`` for each of `codes` as an Arrow column of text; code -1 is null."""
    codes = np.asarray(codes, dtype=np.int32)
    index = pa.array(codes, mask=codes < 0)
    return pa.array(values, type=pa.string()).take(index)
