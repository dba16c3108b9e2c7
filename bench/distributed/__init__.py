"""Tables over several processes: CPU time, bytes on the wire and memory, side by side."""
