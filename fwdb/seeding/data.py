"""The seed data: three accounts, two avatars, four catalog items, two designs."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

# bcrypt of "secret" at cost 10. The accounts are for tests and their password is published, so
# a hash made once tells nobody anything new, and seeding stays exact and fast.
PASSWORD_HASH = "$2b$10$nmflOhqMJ3fDR2yp.vI/f.JpWjoE67yIQz7EN0tcJ6F3is7CaftgS"  # noqa: S105


def _user(email: str, first_name: str, last_name: str, role: str) -> dict[str, Any]:
    return {
        "email": email,
        "password_hash": PASSWORD_HASH,
        "first_name": first_name,
        "last_name": last_name,
        "role": role,
        "is_active": True,
        "email_verified": True,
    }


ADMIN = "admin@fashionwallet.com"
USER = "user@fashionwallet.com"
DESIGNER = "designer@fashionwallet.com"

USERS = (
    _user(ADMIN, "Admin", "User", "admin"),
    _user(USER, "Test", "User", "user"),
    _user(DESIGNER, "Designer", "User", "designer"),
)


def _measurements(*values: int) -> dict[str, int]:
    """Centimetres, and kilograms for the weight."""
    names = ("height", "weight", "chest", "waist", "hips", "shoulderWidth")
    return dict(zip(names, values, strict=True))


# Owner's e-mail -> avatar.
AVATARS = MappingProxyType(
    {
        ADMIN: {
            "name": "Default Avatar",
            "gender": "unisex",
            "measurements": _measurements(170, 65, 90, 75, 95, 40),
            "is_default": True,
        },
        USER: {
            "name": "Male Avatar",
            "gender": "male",
            "measurements": _measurements(180, 75, 100, 85, 95, 45),
            "is_default": False,
        },
    }
)


def _item(
    name: str, type_: str, category: str, properties: dict[str, Any], price: int = 0
) -> dict[str, Any]:
    return {
        "name": name,
        "type": type_,
        "category": category,
        "properties": properties,
        "is_premium": price > 0,
        "price": price,
    }


T_SHIRT = ("Classic T-Shirt", "silhouette")
COTTON = ("Cotton Fabric", "fabric")
STRIPES = ("Striped Pattern", "pattern")
JEANS = ("Designer Jeans", "silhouette")

CATALOG_ITEMS = (
    _item(*T_SHIRT, "top", {"tags": ["casual", "basic", "everyday"]}),
    _item(*COTTON, "top", {"material": "cotton", "tags": ["soft", "breathable", "natural"]}),
    _item(*STRIPES, "top", {"patternType": "stripes", "tags": ["classic", "versatile"]}),
    _item(*JEANS, "bottom", {"tags": ["premium", "designer", "fashion"]}, price=1000),
)

# Owner's e-mail -> design; `layers` and `catalog_items` name catalog items.
DESIGNS = MappingProxyType(
    {
        ADMIN: {
            "name": "My First Design",
            "status": "draft",
            "layers": (T_SHIRT,),
            "tags": ["casual", "everyday"],
            "description": "A simple everyday outfit",
            "catalog_items": (T_SHIRT, COTTON),
        },
        USER: {
            "name": "Published Design",
            "status": "published",
            "layers": (T_SHIRT, COTTON),
            "tags": ["published", "featured"],
            "description": "A featured design",
            "catalog_items": (T_SHIRT, COTTON, STRIPES),
        },
    }
)


def layer(number: int, type_: str, item_id: str) -> dict[str, Any]:
    """Layer `number` (from 1) of a design, unmoved and unscaled, drawn above those before it."""
    return {
        "id": f"layer-{number}",
        "type": type_,
        "itemId": item_id,
        "position": {"x": 0, "y": 0, "z": number - 1},
        "scale": {"x": 1, "y": 1},
        "visible": True,
    }
