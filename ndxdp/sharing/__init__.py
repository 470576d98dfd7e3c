"""One prefix on both sides of the host: learned hosts, and relayed router advertisements. Pure."""
