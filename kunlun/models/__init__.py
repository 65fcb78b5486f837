"""The models, one file each: Kunlun, and what it is compared with."""

from kunlun.models.dcnv2 import DCNv2
from kunlun.models.dien import DIEN
from kunlun.models.din import DIN
from kunlun.models.dlrm import DLRM
from kunlun.models.hstu import HSTU
from kunlun.models.interformer import InterFormer
from kunlun.models.kunlun import Kunlun
from kunlun.models.logistic_regression import LogisticRegression
from kunlun.models.wukong import Wukong

__all__ = ["DIEN", "DIN", "DLRM", "HSTU", "DCNv2", "InterFormer", "Kunlun", "LogisticRegression", "Wukong"]
