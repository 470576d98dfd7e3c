"""Programs that try ndxdp where the test suite cannot run: machines, images, releases."""
