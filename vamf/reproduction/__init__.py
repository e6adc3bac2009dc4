"""The tables of arXiv 2605.09235 on points, trained anew with error bars and floors."""
