"""``python -m alknet`` is ``alknet``."""

from alknet.cli import main

main()
