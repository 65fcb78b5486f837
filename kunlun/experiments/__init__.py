"""Many runs, one table. Stands on kunlun.training; nothing below imports it."""
