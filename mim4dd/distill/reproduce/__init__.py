"""Rows of published tables, distilled and judged anew: ours beside theirs."""
