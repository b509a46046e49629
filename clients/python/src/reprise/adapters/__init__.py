"""What trainers take, made of groups. Each adapter imports its trainer only where it needs its types."""
