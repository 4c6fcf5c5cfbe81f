"""Random C programs for XDP, compiled by clang: the idioms of a real compiler."""
