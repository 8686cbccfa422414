"""Models fitted from behaviour, and the offline build."""
