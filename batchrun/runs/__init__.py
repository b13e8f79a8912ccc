"""How a run is opened, recovered and ended: inputs taken in, what may be written checked, files concluded."""
