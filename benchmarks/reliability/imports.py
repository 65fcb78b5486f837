"""What every attempt imports."""

import data.module
import kunlun.models
import kunlun.training.cli  # noqa: F401
