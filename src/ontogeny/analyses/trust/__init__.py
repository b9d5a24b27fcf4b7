"""How far births and deaths can be trusted: relays, silent births and deaths, signs of presence."""
