"""What each part of the eBPF core costs: programs of our own, one thing each."""
