"""The seed data: three accounts, two avatars, four catalog items, two designs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# bcrypt of "secret" at cost 10. The accounts are for tests and their password is published, so
# a hash made once tells nobody anything new, and seeding stays exact and fast.
PASSWORD_HASH = "$2b$10$nmflOhqMJ3fDR2yp.vI/f.JpWjoE67yIQz7EN0tcJ6F3is7CaftgS"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the id of another row or document: the values of its natural key.

    What refers to a row that must be `live` is not made when that row was removed.
    """

    entity: str
    key: tuple[Any, ...]  # texts, or other references
    live: bool = False


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


def _avatar(owner: Ref, name: str, gender: str, is_default: bool, *sizes: int) -> dict[str, Any]:
    """`sizes` are centimetres, and kilograms for the weight."""
    names = ("height", "weight", "chest", "waist", "hips", "shoulderWidth")
    return {
        "user_id": owner,
        "name": name,
        "gender": gender,
        "measurements": dict(zip(names, sizes, strict=True)),
        "is_default": is_default,
    }


def _item(
    item: Ref, category: str, properties: dict[str, Any], *tags: str, price: int = 0
) -> dict[str, Any]:
    return {
        **dict(zip(("name", "type"), item.key, strict=True)),
        "category": category,
        "properties": {**properties, "tags": [*tags]},
        "is_premium": price > 0,
        "price": price,
    }


def _design(
    owner: Ref, name: str, status: str, description: str, tags: list[str], *items: Ref, layers: int
) -> dict[str, Any]:
    """A design of `items`, of which the first so many are layers."""
    return {
        "user_id": owner,
        "name": name,
        "status": status,
        "layers": [layer(n, item.key[1], item) for n, item in enumerate(items[:layers], start=1)],
        "metadata": {"tags": tags, "description": description},
        "catalog_item_ids": [*items],
    }


def layer(number: int, type_: str, item_id: Any) -> dict[str, Any]:
    """Layer `number` (from 1) of a design, unmoved and unscaled, drawn above those before it."""
    return {
        "id": f"layer-{number}",
        "type": type_,
        "itemId": item_id,
        "position": {"x": 0, "y": 0, "z": number - 1},
        "scale": {"x": 1, "y": 1},
        "visible": True,
    }


_ADMIN = Ref("User", ("admin@fashionwallet.com",), live=True)
_USER = Ref("User", ("user@fashionwallet.com",), live=True)
_T_SHIRT = Ref("CatalogItem", ("Classic T-Shirt", "silhouette"))
_COTTON = Ref("CatalogItem", ("Cotton Fabric", "fabric"))
_STRIPES = Ref("CatalogItem", ("Striped Pattern", "pattern"))
_JEANS = Ref("CatalogItem", ("Designer Jeans", "silhouette"))

# By entity; what is referred to stands before what refers to it.
ROWS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "User": (
        _user(_ADMIN.key[0], "Admin", "User", "admin"),
        _user(_USER.key[0], "Test", "User", "user"),
        _user("designer@fashionwallet.com", "Designer", "User", "designer"),
    ),
    "Avatar": (
        _avatar(_ADMIN, "Default Avatar", "unisex", True, 170, 65, 90, 75, 95, 40),
        _avatar(_USER, "Male Avatar", "male", False, 180, 75, 100, 85, 95, 45),
    ),
    "CatalogItem": (
        _item(_T_SHIRT, "top", {}, "casual", "basic", "everyday"),
        _item(_COTTON, "top", {"material": "cotton"}, "soft", "breathable", "natural"),
        _item(_STRIPES, "top", {"patternType": "stripes"}, "classic", "versatile"),
        _item(_JEANS, "bottom", {}, "premium", "designer", "fashion", price=1000),
    ),
    "Design": (
        _design(
            _ADMIN, "My First Design", "draft", "A simple everyday outfit", ["casual", "everyday"],
            _T_SHIRT, _COTTON, layers=1,
        ),
        _design(
            _USER, "Published Design", "published", "A featured design", ["published", "featured"],
            _T_SHIRT, _COTTON, _STRIPES, layers=2,
        ),
    ),
}  # fmt: skip
