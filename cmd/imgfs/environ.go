package main

import (
	"os"
	"os/user"
	"strconv"
)

// usualPath is where programs are looked for when nobody has said it.
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// completeEnviron adds what a login shell has: mount(8) takes PATH and HOME away from what it starts for an ordinary user
// (the option "user" in fstab), and service managers do not always set them. fusermount3 is found by the one, the user's
// store, cache and credentials by the other.
func completeEnviron() {
	if os.Getenv("PATH") == "" {
		_ = os.Setenv("PATH", usualPath)
	}
	if os.Getenv("HOME") == "" {
		if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil && u.HomeDir != "" {
			_ = os.Setenv("HOME", u.HomeDir)
		}
	}
}
