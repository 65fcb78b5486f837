"""The models, one file each."""

from kunlun.models.kunlun import Kunlun

__all__ = ["Kunlun"]
