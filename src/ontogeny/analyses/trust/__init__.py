"""How far births and deaths can be trusted: relays, silent births and deaths, two signs."""
