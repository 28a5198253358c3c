;;; A stand-in, in the shape of Guix's: the procedures that are replaced there are here, too.

(define-module (gnu ci)
  #:use-module (guix channels)
  #:use-module (guix derivations)
  #:use-module (guix packages)
  #:use-module (guix store)
  #:use-module (ice-9 match)
  #:use-module (srfi srfi-1)
  #:export (derivation->job cuirass-jobs))

(define* (derivation->job name drv #:key (max-silent-time 3600) (timeout 18000))
  `((#:job-name . ,name)
    (#:derivation . ,(derivation-file-name drv))
    (#:inputs . ())
    (#:outputs . ,(derivation->output-paths drv))
    (#:nix-name . ,(derivation-name drv))
    (#:system . ,(derivation-system drv))
    (#:max-silent-time . ,max-silent-time)
    (#:timeout . ,timeout)))

(define (package-job store name package system)
  (derivation->job (string-append name "." system)
                   (package-derivation store package system #:graft? #f)
                   #:timeout 72000))

(define (package->job store package system)
  (and (supported-package? package system)
       (let ((drv (package-derivation store package system #:graft? #f)))
         (and (substitutable-derivation? drv)
              (package-job store (package-name package) package system)))))

(define (manifest->jobs store file system)
  (map (lambda (name)
         (derivation->job (string-append name "-1")
                          (run-with-store store
                            (lambda (store) (package-derivation store name system))
                            #:system system)))
       (call-with-input-file file read)))

(define (cuirass-jobs store arguments)
  (define channels
    (map sexp->channel (assq-ref arguments 'channels)))
  (define guix
    (find (lambda (channel) (eq? 'guix (channel-name channel))) channels))
  (append-map
   (lambda (system)
     (match (assq-ref arguments 'subset)
       ('all
        (filter-map (lambda (package) (package->job store package system)) (all-packages)))
       ('hello
        (list (package-job store "hello" "hello" system)))
       ('guix
        (kill (call-with-input-file (string-append (channel-url guix) ".keeper") read) 0)
        (list (derivation->job
               (string->symbol (string-append "guix." system))
               (nix-derivation (string-append "guix-" (channel-commit guix)) system
                               (string-append "echo " (getenv "GUIX_OF_CHANNELS") " "
                                              (channel-url guix) " > $out")))))
       (('packages . names)
        (map (lambda (name)
               (package-job store name (specification->package name) system))
             names))
       (('channels . names)
        (filter-map (lambda (package)
                      (any (lambda (channel)
                             (and (member (channel-name channel) names)
                                  (package->job store package system)))
                           (package-channels package)))
                    (all-packages)))
       (('manifests . files)
        (append-map (lambda (file)
                      (manifest->jobs store
                                      (any (lambda (channel)
                                             (let ((path (in-vicinity (channel-url channel) file)))
                                               (and (file-exists? path) path)))
                                           channels)
                                      system))
                    files))
       (('custom . modules)
        (append-map (lambda (module)
                      ((module-ref (resolve-interface module) 'cuirass-jobs) store arguments))
                    modules))))
   (assq-ref arguments 'systems)))
