"""What every attempt imports."""

import data.module  # noqa: F401
import kunlun.models
import kunlun.training.cli  # noqa: F401
