"""Traffic towards the routers: announcements, gateway solicitations, deprecated addresses."""
