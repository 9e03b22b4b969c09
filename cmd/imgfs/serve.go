package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	cs "go.podman.io/storage"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/ops"
	"github.com/imgfs/imgfs/imgsrc/registry"
	"github.com/imgfs/imgfs/imgsrc/storage"
	"github.com/imgfs/imgfs/mount"
)

// closeTime is how long running operations have to stop when the mount has ended.
const closeTime = 3 * time.Second

// serve puts the parts together, serves the tree until it is unmounted, and takes them apart in the opposite order.
func (o *mountOptions) serve(ctx context.Context, a *app, specs []*spec, mountpoint string, log *slog.Logger) error {
	cache, err := layer.OpenCache(o.cacheDir, int64(o.cacheSize), log)
	if err != nil {
		return err
	}
	defer closing(log, "cache", cache.Close)

	avoid := o.avoid(specs)
	var sources []imgsrc.Source
	var names []string
	var jobs atomic.Pointer[ops.Ops]
	env := sourceEnv{cache: cache, cacheDir: o.cacheDir, log: log, registry: registry.Options{
		Cache: cache, CacheDir: o.cacheDir, AuthFile: o.authFile, TLSVerify: o.tls(), Insecure: o.insecureNetworks,
		Offline: o.offline, Platform: o.platform, Log: log,
		Fetching: func(repo string, d digest.Digest, size int64, parts bool) (arrived func(int64), ended func(error)) {
			if o := jobs.Load(); o != nil {
				return o.Fetch("docker://"+repo+"@"+d.String(), d, size, parts)
			}
			return nil, nil // while the sources are opened
		},
	}}
	opened, err := openSources(ctx, specs, env)
	for _, src := range opened {
		defer closing(log, src.Name(), src.Close)
	}
	if err != nil {
		return sourceFailed(ctx, err)
	}
	for _, src := range opened {
		sources, names = append(sources, src), append(names, src.Name())
		if d, ok := src.(interface{ Dirs() []string }); ok {
			for _, dir := range d.Dirs() {
				avoid = append(avoid, mount.Dir{Path: dir, What: "the source " + src.Name()})
			}
		}
	}
	point, err := mount.Check(mountpoint, avoid...)
	if err != nil {
		return err
	}
	followed := registry.NewFollowed(env.registry)
	defer closing(log, "registries", followed.Close)
	catalog := imgsrc.NewCatalog(log, append(sources, followed)...)
	if _, err := catalog.Refresh(ctx); err != nil {
		return sourceFailed(ctx, err)
	}
	operations := ops.New(ops.Options{
		Catalog:  catalog,
		ReadOnly: o.flags.ReadOnly,
		AuthFile: o.authFile,

		SignaturePolicy: o.signaturePolicy,
		TLSVerify:       o.tls(),
		Insecure:        registry.Trust(o.insecureNetworks),
		Registry:        registryOf(env.registry),
		OpenReceiver:    openReceiver(log),
		Offline:         o.offline,
		Platform:        o.platform,
		Open:            func(ctx context.Context, place string) (imgsrc.Source, error) { return openPlace(ctx, place, env) },
		PathInside:      func(path string) bool { return strings.HasPrefix(path+"/", point.Path()+"/") },
		Log:             log,
	})
	jobs.Store(operations)
	operations.Record("mount", "", strings.Join(names, " "))
	endOperations := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		return operations.Close(ctx)
	}
	defer closing(log, "operations", endOperations)
	tree := fs.New(fs.Options{
		Catalog:  catalog,
		Ops:      controls{operations},
		Layers:   cache,
		Platform: o.platform,
		Remotes:  followed,
		ReadOnly: o.flags.ReadOnly,
		UID:      uint32(os.Geteuid()),
		GID:      uint32(os.Getegid()),
		Owner:    fs.Owner{UID: o.flags.UID, GID: o.flags.GID, Umask: o.flags.Umask},
		Log:      log,

		AllowRemove: o.flags.AllowRemove,
		Mountpoint:  point.Path(),
	})
	following, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { tree.Run(following) })
	defer closing(log, "tree", func() error {
		wg.Wait()
		return nil
	})
	defer stop()

	options := mount.Options{
		Point: point, Sources: names, Flags: o.flags, Log: log,
		Ending: func(reason string) {
			operations.Record("unmount", "", reason)
			if os.Geteuid() != 0 {
				// What writes to an ordinary user's store has mounts of its own, and in them this one: it would stay.
				go closing(log, "operations", endOperations)
			}
		},
	}
	if a.parent != nil {
		options.Ready = a.parent.Ready
	}
	return mount.Serve(ctx, tree, options)
}

// registryOf returns the registries that pushes ask for what they need not send.
func registryOf(options registry.Options) func(host, authFile string, tlsVerify *bool) ops.Mounter {
	return func(host, authFile string, tlsVerify *bool) ops.Mounter {
		o := options
		o.Ref = host
		if authFile != "" {
			o.AuthFile = authFile
		}
		if tlsVerify != nil {
			o.TLSVerify = tlsVerify
		}
		return registry.NewClient(o)
	}
}

// openReceiver opens a store that is pushed to.
func openReceiver(log *slog.Logger) func(context.Context, cs.StoreOptions) (ops.Receiver, error) {
	return func(ctx context.Context, o cs.StoreOptions) (ops.Receiver, error) {
		return storage.OpenToReceive(ctx, storage.Options{
			GraphRoot: o.GraphRoot, RunRoot: o.RunRoot, Driver: o.GraphDriverName, DriverOptions: o.GraphDriverOptions, Log: log,
		})
	}
}

func (o *mountOptions) tls() *bool {
	if !o.tlsAsked {
		return nil
	}
	return &o.tlsVerify
}

// controls gives the tree its operations: the two packages do not know each other.
type controls struct{ *ops.Ops }

func (c controls) Do(ctx context.Context, w fs.Write) error { return c.Ops.Do(ctx, request(w)) }

func (c controls) WriteJob(number uint32, w fs.Write) error {
	return c.Ops.WriteJob(number, request(w))
}

func request(w fs.Write) ops.Request {
	return ops.Request{
		Control: w.Control,
		Image:   w.Image,
		Lines:   w.Lines,
		Key:     w.Key,
		UID:     w.UID,
		PID:     w.PID,
		Remote:  w.Remote,
		Err:     w.Err,
	}
}
