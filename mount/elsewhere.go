package mount

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// elsewhere returns a process of each other mount namespace that has the file system of a device mounted, as "name (pid)": it lives
// for as long as they do. Those that this user may not look at are left out.
func elsewhere(device string) []string {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil
	}
	seen := map[string]bool{own: true}
	var found []string
	for _, process := range processes {
		ns, err := os.Readlink(process + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		if !tableHas(process+"/mountinfo", device) {
			continue
		}
		name, err := os.ReadFile(process + "/comm")
		if err != nil {
			name = []byte("?")
		}
		found = append(found, fmt.Sprintf("%s (%s)", strings.TrimSpace(string(name)), filepath.Base(process)))
	}
	return found
}

// tableHas says whether a device is in a process's mount table (proc_pid_mountinfo(5): it is the third field).
func tableHas(table, device string) bool {
	f, err := os.Open(table)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == device {
			return true
		}
	}
	return false
}

// elsewhereText says who keeps the file system of a device although it was unmounted here; empty if that is not known.
func elsewhereText(device string) string {
	found := elsewhere(device)
	switch {
	case len(found) == 0:
		return ""
	case len(found) > maxUsers:
		return fmt.Sprintf(", because mount namespaces of their own still have it: %s and %d more", strings.Join(found[:maxUsers], ", "), len(found)-maxUsers)
	}
	return ", because mount namespaces of their own still have it: " + strings.Join(found, ", ")
}
