package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"go.podman.io/storage/pkg/unshare"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/mount"
)

// mountOptions is what `imgfs mount` is asked for.
type mountOptions struct {
	foreground bool
	readOnly   bool
	words      []string // of -o
	authFile   string
	tlsVerify  bool
	tlsAsked   bool // --tls-verify was given
	cacheDir   string
	cacheSize  byteSize
	log        logOptions

	platformText string   // of --platform
	insecure     []string // of --insecure-registry
	offline      bool

	signaturePolicy string // of --signature-policy

	insecureNetworks []netip.Prefix // what insecure says; nil: the default

	allowRemove bool

	flags    mount.Flags     // what words say
	platform imgsrc.Platform // what platformText or words say
}

const defaultCacheSize = 10 << 30

func newMountCommand(a *app) *cobra.Command {
	o := &mountOptions{cacheSize: defaultCacheSize}
	cmd := &cobra.Command{
		Use:   "mount [SOURCE...] MOUNTPOINT",
		Short: "Mount images",
		Long: `Mount all images of the SOURCEs as one tree on MOUNTPOINT, and return when it can be read; a process in the
background serves it until it is unmounted. Nothing is printed on success.

A SOURCE is
` + sourceHelp() + `
Without a SOURCE it is the containers-storage of this user. An ordinary user needs fusermount3 and, for all of his
containers-storage, what podman needs: newuidmap, and ids in /etc/subuid and /etc/subgid.

MOUNTPOINT must be an empty directory. If it is missing it is made, and removed again when it is unmounted. A mount
whose process was killed is replaced.

Words for -o, separated by commas:
  ro             the controls take no writes (as --read-only)
  allow_remove   rm of a name untags, and rmdir of ids/ID removes the image (as --allow-remove)
  allow_other    other users may read too, each as the modes in the images allow
  noxattr        no extended attributes
  uid=, gid=, umask=
                 the owner and group to show, and the permissions to take from every file
  noexec, dev, suid
                 as with mount(8); nodev and nosuid are the default, and only root may ask for dev and suid
  platform=os/architecture[/variant]
                 as --platform, which goes before it
Words that only fstab(5) gives a meaning are ignored.

` + exitHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no mountpoint given")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.tlsAsked = cmd.Flags().Changed("tls-verify")
			if err := o.parse(); err != nil {
				return usage(cmd, err)
			}
			last := len(args) - 1
			return o.run(cmd.Context(), a, args[:last], args[last])
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVarP(&o.foreground, "foreground", "f", false, "serve in this process instead of in the background")
	f.BoolVar(&o.readOnly, "read-only", false, "take no writes: no tags, no names, no pushes")
	f.BoolVar(&o.allowRemove, "allow-remove", false, "rm of a name untags, rmdir of ids/ID removes the image; without it both are refused")
	f.StringArrayVarP(&o.words, "options", "o", nil, "mount options, as in fstab(5)")
	f.StringVar(&o.platformText, "platform", "", "os/architecture[/variant]: which image of an index is meant (default: for this machine)")
	f.StringVar(&o.authFile, "authfile", "", "credentials for registries (default: where podman looks, REGISTRY_AUTH_FILE first)")
	f.BoolVar(&o.tlsVerify, "tls-verify", true, "ask registries for a valid certificate (default: as registries.conf says)")
	f.StringArrayVar(&o.insecure, "insecure-registry", nil, "a network (CIDR) in which registries need no certificate, and HTTP will do; may be repeated (default: loopback)")
	f.StringVar(&o.signaturePolicy, "signature-policy", "", "the policy.json that says what may be pulled, loaded and pushed (default: the user's, else the system's)")
	f.BoolVar(&o.offline, "offline", false, "ask no registry: what the cache has is all there is")
	f.StringVar(&o.cacheDir, "cache-dir", defaultCacheDir(), "where decompressed layers are kept; empty: nowhere")
	f.Var(&o.cacheSize, "cache-size", "how much may be kept there, in bytes or with K, M, G or T; 0: no bound")
	f.StringVar(&o.log.level, "log-level", "warn", "debug, info, warn or error")
	f.StringVar(&o.log.file, "log-file", "", "append the log to this file (default: stderr with --foreground, else nowhere)")
	f.Lookup("tls-verify").DefValue = "" // it has no default of its own
	return cmd
}

// parse makes sense of what flags hold as text, and makes paths independent of the working directory, which the process
// in the background leaves.
func (o *mountOptions) parse() error {
	for _, word := range o.words {
		if err := o.flags.ParseOptions(word); err != nil {
			return err
		}
	}
	o.flags.ReadOnly = o.flags.ReadOnly || o.readOnly
	o.flags.AllowRemove = o.flags.AllowRemove || o.allowRemove
	if err := o.parsePlatform(); err != nil {
		return err
	}
	if err := o.log.parse(); err != nil {
		return err
	}
	for _, text := range o.insecure {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("--insecure-registry %q: not a network, as in 10.0.0.0/8: %w", text, err)
		}
		o.insecureNetworks = append(o.insecureNetworks, network.Masked())
	}
	asked := o.authFile
	if o.authFile == "" { // as podman, skopeo and buildah do; unlike a file that was asked for it may be missing, or come with a login
		o.authFile = os.Getenv("REGISTRY_AUTH_FILE")
	}
	for _, path := range []*string{&o.authFile, &o.signaturePolicy, &o.cacheDir, &o.log.file} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("resolving %s: %w", *path, err)
		}
		*path = abs
	}
	for flag, file := range map[string]string{"authfile": asked, "signature-policy": o.signaturePolicy} {
		if file == "" {
			continue
		}
		switch info, err := os.Stat(file); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("--%s %s: there is no such file", flag, file)
		case err == nil && (info.IsDir() || info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0): // a pipe can be read once, and is waited for
			return fmt.Errorf("--%s %s: it is not a file", flag, file)
		}
	}
	return nil
}

// parsePlatform takes the platform from the flag, else from the words after -o, else from this machine.
func (o *mountOptions) parsePlatform() error {
	text, from := o.platformText, "--platform"
	if text == "" {
		text, from = o.flags.Platform, "-o platform="
	}
	if text == "" {
		o.platform = imgsrc.HostPlatform()
		return nil
	}
	p, err := imgsrc.ParsePlatform(text)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	o.platform = p
	return nil
}

// run mounts. In the background it runs twice: the process that was called stops after the cheap checks and starts the
// one that serves.
func (o *mountOptions) run(ctx context.Context, a *app, sources []string, mountpoint string) error {
	err := o.mount(ctx, a, sources, mountpoint)
	if err == nil || isChild(err) {
		return err
	}
	return fmt.Errorf("mounting on %s: %w", mountpoint, err)
}

func (o *mountOptions) mount(ctx context.Context, a *app, sources []string, mountpoint string) error {
	specs, err := parseSources(sources)
	if err != nil {
		return err
	}
	if _, err := mount.Check(mountpoint, o.avoid(specs)...); err != nil {
		return err
	}
	if a.parent == nil && !o.foreground {
		logFile, err := o.log.open()
		if err != nil {
			return err
		}
		return mount.Daemonise(ctx, logFile, "ids")
	}
	log, err := o.log.logger(a.parent != nil)
	if err != nil {
		return err
	}
	err = o.serve(ctx, a, specs, mountpoint, log)
	if err != nil {
		log.Error("mounting", "mountpoint", mountpoint, "error", err)
	}
	return err
}

// avoid returns the directories that a mountpoint must keep away from, as far as they are known before a source is
// opened.
func (o *mountOptions) avoid(specs []*spec) []mount.Dir {
	var dirs []mount.Dir
	if o.cacheDir != "" {
		dirs = append(dirs, mount.Dir{Path: o.cacheDir, What: "the cache " + o.cacheDir})
	}
	if o.log.file != "" {
		dirs = append(dirs, mount.Dir{Path: o.log.file, What: "the log file " + o.log.file})
	}
	for _, s := range specs {
		for _, dir := range s.dirs {
			dirs = append(dirs, mount.Dir{Path: dir, What: "the source " + s.name})
		}
	}
	return dirs
}

// defaultCacheDir returns /var/cache/imgfs for root, else imgfs in the user's own cache directory; empty if there is
// none. Under podman unshare root is that user.
func defaultCacheDir() string {
	if os.Geteuid() == 0 && unshare.GetRootlessUID() == 0 {
		return "/var/cache/imgfs"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "imgfs")
}

// lateTime is after what time the log names a step of shutting down that has not ended.
const lateTime = 5 * time.Second

// closing runs one step of shutting down, whose failure changes nothing any more.
func closing(log *slog.Logger, what string, closer func() error) {
	late := time.AfterFunc(lateTime, func() { log.Warn("closing takes long", "what", what) })
	defer late.Stop()
	if err := closer(); err != nil {
		log.Warn("closing", "what", what, "error", err)
	}
}
