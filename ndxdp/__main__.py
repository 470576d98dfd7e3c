from ndxdp.cli import main

main()
