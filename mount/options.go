package mount

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Flags is what the words after -o ask for. The zero value is the default: read-write controls, no device files, no
// set-uid programs, for the mounting user only.
type Flags struct {
	ReadOnly   bool // ro
	AllowOther bool // allow_other: other users may read, each as the modes in the tree allow
	NoXattr    bool // noxattr: no extended attributes at all
	NoExec     bool // noexec
	Dev        bool // dev: device files in images work as such; only for root
	Suid       bool // suid: set-uid programs in images work as such; only for root

	// UID, GID and Umask replace the owner, the group and mask the permissions of every file in the tree; nil leaves
	// them as the images have them. This package only parses them: the file system carries them out.
	UID, GID, Umask *uint32

	// AllowRemove is allow_remove: names and images can be removed. This package only parses it.
	AllowRemove bool

	// Platform is the value of platform=, as it was written; empty if there is none. This package does not look into it.
	Platform string
}

// ignored are words that belong to fstab(5) and mount(8), or say what is so anyway.
var ignored = map[string]bool{
	"defaults": true, "auto": true, "noauto": true, "nofail": true, "_netdev": true,
	"user": true, "nouser": true, "users": true, "owner": true, "group": true,
	"atime": true, "noatime": true, "diratime": true, "nodiratime": true, "relatime": true, "norelatime": true,
	"async": true,
}

// ParseOptions reads words separated by commas, as in the fourth field of fstab(5), into f; of two that contradict each
// other the later one wins. Errors: ErrOption; ErrDenied for dev and suid if the caller is not root.
func (f *Flags) ParseOptions(words string) error {
	for word := range strings.SplitSeq(words, ",") {
		key, value, hasValue := strings.Cut(strings.TrimSpace(word), "=")
		if key == "" && !hasValue || ignored[key] || key == "comment" ||
			strings.HasPrefix(key, "x-") || strings.HasPrefix(key, "X-") {
			continue
		}
		var err error
		switch key {
		case "uid":
			f.UID, err = number(word, value, 10)
		case "gid":
			f.GID, err = number(word, value, 10)
		case "umask":
			f.Umask, err = number(word, value, 8)
			if err == nil && *f.Umask > 0o777 {
				err = fmt.Errorf("%q: a umask is at most 0777: %w", word, ErrOption)
			}
		case "platform":
			if f.Platform = value; value == "" {
				err = fmt.Errorf("%w %q: no value", ErrOption, word)
			}
		default:
			if hasValue {
				return fmt.Errorf("%w %q", ErrOption, word)
			}
			err = f.set(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *Flags) set(word string) error {
	switch word {
	case "ro":
		f.ReadOnly = true
	case "rw":
		f.ReadOnly = false
	case "allow_remove":
		f.AllowRemove = true
	case "allow_other":
		f.AllowOther = true
	case "noxattr":
		f.NoXattr = true
	case "exec":
		f.NoExec = false
	case "noexec":
		f.NoExec = true
	case "nodev":
		f.Dev = false
	case "nosuid":
		f.Suid = false
	case "dev", "suid":
		if os.Geteuid() != 0 {
			return fmt.Errorf("option %s: only root may ask for it: %w", word, ErrDenied)
		}
		if word == "dev" {
			f.Dev = true
		} else {
			f.Suid = true
		}
	default:
		return fmt.Errorf("%w %q", ErrOption, word)
	}
	return nil
}

func number(word, value string, base int) (*uint32, error) {
	n, err := strconv.ParseUint(value, base, 32)
	if err != nil || n == 1<<32-1 { // -1 is no id: chown(2) reads it as "leave it"
		return nil, fmt.Errorf("%w %q: not a number that is possible here", ErrOption, word)
	}
	v := uint32(n)
	return &v, nil
}
