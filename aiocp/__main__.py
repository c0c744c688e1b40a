"""python -m aiocp"""

from aiocp.cli import main

main()
