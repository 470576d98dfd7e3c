from ndxdp.cli.main import main

main()
