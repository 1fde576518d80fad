"""The same nets in other libraries, each as its own users would write it."""
